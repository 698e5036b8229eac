"""Score, allocate, then train the plan under DeepSpeed: ZeRO-3 shards the base, and what comes out is a plain PEFT LoRA.

usage: python examples/train_a_plan_deepspeed.py plan [MODEL DATA OUTPUT STEPS]
       torchrun --nproc_per_node 2 examples/train_a_plan_deepspeed.py train [MODEL DATA OUTPUT STEPS]

The first command is one process, the second one goes on where it was stopped. MODEL and DATA are hub names or folders, DATA has a
column text. ZERO in the environment is the stage: 3 (default), 2, or 0 for DDP.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lorank

part = sys.argv[1]
model, data, output, steps = sys.argv[2:] or ["Qwen/Qwen3-0.6B", "stanfordnlp/imdb", "runs/deepspeed", "500"]
on_cpu = not torch.cuda.is_available()
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset(data, split="train")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=rows.column_names)
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

if part == "plan":
    base = AutoModelForCausalLM.from_pretrained(
        model, device_map=None if on_cpu else "auto"
    )  # on all GPUs, if one is small
    batches = DataLoader(rows.shuffle(seed=0).select(range(min(256, len(rows)))), batch_size=8, collate_fn=collate)
    scores = lorank.score(base, batches)
    scores.save(f"{output}/scores.safetensors")
    lorank.allocate(scores, "r=8", max_rank=64).save(f"{output}/plan.json")
    sys.exit()

stage = int(os.environ.get("ZERO", "3"))
config = {
    "zero_optimization": {"stage": stage},
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "zero_allow_untested_optimizer": True,  # torch's AdamW, which the Trainer makes
    "zero_force_ds_cpu_optimizer": False,
}
# Before the model is loaded: from_pretrained then leaves each process its shard alone.
arguments = TrainingArguments(output, max_steps=int(steps), learning_rate=1e-3, per_device_train_batch_size=4,
                              save_steps=max(1, int(steps) // 2), bf16=not on_cpu, use_cpu=on_cpu, report_to="none",
                              deepspeed=config if stage else None)  # fmt: skip
set_seed(arguments.seed)
plan = lorank.RankPlan.load(f"{output}/plan.json")
base = AutoModelForCausalLM.from_pretrained(model)
adapted = get_peft_model(base, plan.lora_config(task_type="CAUSAL_LM"))
trainer = Trainer(adapted, arguments, train_dataset=rows, data_collator=collate)
trainer.train(resume_from_checkpoint=any(Path(output).glob("checkpoint-*")))
trainer.save_model(f"{output}/adapter")  # on every process: they gather the shards together
trainer.accelerator.wait_for_everyone()
if trainer.is_world_process_zero():
    held = lorank.check_saved_adapter(f"{output}/adapter", plan)  # the plan's parameters, no shards, all trained
    print(f"{held:,} of {plan.budget_parameters:,} parameters in {output}/adapter")
