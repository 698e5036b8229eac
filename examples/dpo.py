"""DPO with IGU-LoRA: ranks are scored by the DPO loss, and what comes out is a plain PEFT LoRA.

usage: python examples/dpo.py [MODEL DATA OUTPUT STEPS]

MODEL and DATA are hub names or folders. DATA has the columns prompt, chosen and rejected.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from lorank import RankAllocation

usual = ["Qwen/Qwen3-0.6B", "trl-lib/ultrafeedback_binarized", "runs/dpo", "500"]
model, data, output, steps = sys.argv[1:] or usual
trainer = DPOTrainer(
    model,  # no ref_model: TRL takes the model without its adapter as the reference
    args=DPOConfig(output, max_steps=int(steps), learning_rate=1e-4, bf16=torch.cuda.is_available(), report_to="none"),
    train_dataset=load_dataset(data, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),  # r: the rank to start with
)
allocation = RankAllocation("igu-lora", budget="r=8").attach(trainer)
trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on where it was stopped
trainer.save_model(f"{output}/adapter")
print(f"{allocation.plan.spent:,} of {allocation.plan.budget_parameters:,} parameters; plan and heat map in {output}")
