"""A reward model with AdaLoRA: ranks are scored by the loss of the preferences, and its head is saved with the adapter.

usage: python examples/reward.py [MODEL DATA OUTPUT STEPS]

MODEL and DATA are hub names or folders. DATA has the columns chosen and rejected, and prompt where it is apart.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from lorank import RankAllocation

usual = ["Qwen/Qwen3-0.6B", "trl-lib/ultrafeedback_binarized", "runs/reward", "500"]
model, data, output, steps = sys.argv[1:] or usual
trainer = RewardTrainer(
    model,
    args=RewardConfig(
        output, max_steps=int(steps), learning_rate=1e-4, bf16=torch.cuda.is_available(), report_to="none"
    ),
    train_dataset=load_dataset(data, split="train"),
    # The head is new: it trains whole beside the adapter, and the budget does not count it.
    peft_config=LoraConfig(
        r=16, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"]
    ),
)
allocation = RankAllocation("adalora", budget="r=8").attach(trainer)
trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on where it was stopped
trainer.save_model(f"{output}/adapter")
print(f"{allocation.plan.spent:,} of {allocation.plan.budget_parameters:,} parameters; plan and heat map in {output}")
