"""GRPO with AdaLoRA: ranks are scored by the gradients of the GRPO loss, without any pass besides.

usage: python examples/grpo.py [MODEL DATA OUTPUT STEPS]

MODEL and DATA are hub names or folders. DATA has the column prompt.
"""

import sys
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from lorank import RankAllocation

usual = ["Qwen/Qwen3-0.6B", "trl-lib/tldr", "runs/grpo", "200"]
model, data, output, steps = sys.argv[1:] or usual


def short(completions: list[str], **_: Any) -> list[float]:
    """Reward of each completion: highest at 40 characters. Put your own here."""
    return [-abs(40 - len(text)) / 40 for text in completions]


trainer = GRPOTrainer(
    model,
    reward_funcs=short,
    args=GRPOConfig(
        output,
        max_steps=int(steps),
        learning_rate=1e-4,
        num_generations=4,
        max_completion_length=64,
        bf16=torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=load_dataset(data, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),  # r: the rank to start with
)
allocation = RankAllocation("adalora", budget="r=8").attach(trainer)
trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on where it was stopped
trainer.save_model(f"{output}/adapter")
print(f"{allocation.plan.spent:,} of {allocation.plan.budget_parameters:,} parameters; plan and heat map in {output}")
