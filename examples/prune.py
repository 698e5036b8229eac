"""Prune a LoRA that is trained already, in Python: to half of its parameters, by the loss of each triplet on labelled texts.

usage: python examples/prune.py ADAPTER TEXTS.jsonl OUTPUT [BUDGET]

ADAPTER: folder of a PEFT LoRA of a causal language model. TEXTS.jsonl: {"text": ...} in each line. BUDGET: half, keep=50%, r=4.
`lorank prune` does it on the command line, for other tasks too, with several budgets at once and a curve.
"""

import sys

import torch
from datasets import load_dataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

import lorank

folder, texts, output, *budget = sys.argv[1:]
name = PeftConfig.from_pretrained(folder).base_model_name_or_path
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), folder)

rows = load_dataset("json", data_files=texts, split="train")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=256), remove_columns=rows.column_names)
loader = torch.utils.data.DataLoader(rows, 8, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))

pruned = lorank.prune(model, (budget or ["half"])[0], loader)  # in place
print(f"{pruned.plan.spending}; loss {pruned.loss_before:.4f} before, {pruned.loss_after:.4f} after")
print(f"cut by singular values alone: {pruned.loss_by_svd:.4f}; energy kept {pruned.energy.whole:.0%}")
model.save_pretrained(output)
pruned.plan.save(f"{output}/plan.json")
