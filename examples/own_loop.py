"""I-LoRA in a loop of your own: a first stage with AllocationLoop, which goes on where it was stopped, then one as usual."""

import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from lorank import AllocationLoop

# python examples/prepare_more.py downloads smollm2 friends
folder, file, output, steps = sys.argv[1:] or ["downloads/smollm2", "downloads/friends/train.tsv", "runs/loop", "150"]
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = load_dataset("csv", data_files=file, delimiter="\t", quoting=3, split="train").select_columns("text")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns="text")
parts, collate = rows.train_test_split(test_size=0.1, seed=0), DataCollatorForLanguageModeling(tokenizer, mlm=False)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def backward(step: int) -> None:
    """Gradients of eight texts."""
    drawn = torch.randint(len(parts["train"]), (8,), generator=torch.Generator().manual_seed(step))
    model.train()(**collate([parts["train"][k] for k in drawn.tolist()])).loss.backward()


scoring = torch.utils.data.DataLoader(parts["test"], batch_size=8, shuffle=True, collate_fn=collate)
allocation = AllocationLoop(model, "i-lora", budget="r=4", steps=int(steps), scoring_data=scoring)
checkpoint = Path(output, "checkpoint.pt")
saved = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
if saved:
    model.load_state_dict(saved["model"], strict=False)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
if saved:
    optimizer.load_state_dict(saved["optimizer"])
    allocation.load_state_dict(saved["allocation"])
while not allocation.ended:
    backward(allocation.step)
    allocation.after_backward()  # the regulariser's gradient, before clipping
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    allocation.before_step()  # measures
    optimizer.step()
    allocation.after_step(optimizer)  # measures on the scoring set, and cuts
    optimizer.zero_grad()
    if allocation.step == int(steps) // 2:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        states = {"model": trained, "optimizer": optimizer.state_dict(), "allocation": allocation.state_dict()}
        torch.save(states, checkpoint)
plan = allocation.finish(optimizer, output)  # the model carries the plan's adapter, at a fresh start
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
for step in range(int(steps)):
    backward(step)
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(f"{output}/adapter")  # an ordinary PEFT LoRA
