"""I-LoRA with TRL: a first stage allocates ranks by held-out loss, a second one trains the adapter that is served."""

import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from lorank import RankAllocation

# python examples/prepare_more.py downloads smollm2 friends
usual = ["downloads/smollm2", "downloads/friends/train.tsv", "runs/i_lora_trl", "150"]
model, file, output, steps = sys.argv[1:] or usual
rows = load_dataset("csv", data_files=file, delimiter="\t", quoting=3, split="train").select_columns("text")
parts = rows.train_test_split(test_size=0.1, seed=0)
settings = {"max_steps": int(steps), "max_length": 64, "learning_rate": 1e-3, "bf16": False, "report_to": "none"}
lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
allocation = RankAllocation("i-lora", budget="r=4", scoring_data="scoring")
first = SFTTrainer(model, SFTConfig(f"{output}/search", **settings), train_dataset=parts["train"],
                   eval_dataset={"scoring": parts["test"]}, peft_config=lora)  # fmt: skip
allocation.attach(first)
first.train()  # the model then carries the plan's adapter at a fresh start
second = SFTTrainer(first.model, SFTConfig(f"{output}/train", **settings), train_dataset=parts["train"])
second.train()
second.save_model(f"{output}/adapter")  # an ordinary PEFT LoRA
