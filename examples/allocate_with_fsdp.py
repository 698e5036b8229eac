"""IGU-LoRA over a base in 4 bits that FSDP2 shards over all GPUs: one callback, and a plain PEFT LoRA comes out.

usage: torchrun --nproc_per_node 2 examples/allocate_with_fsdp.py [MODEL DATA OUTPUT STEPS]

MODEL and DATA are hub names or folders, DATA has a column text. On a CPU accelerate does not shard: there this is DDP.
"""

import sys

import torch
from accelerate import PartialState
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lorank

usual = ["Qwen/Qwen3-0.6B", "stanfordnlp/imdb", "runs/allocate_with_fsdp", "500"]
model, data, output, steps = sys.argv[1:] or usual
on_cpu = not torch.cuda.is_available()
# bf16 means what it means without FSDP: autocast. Layers in 4 bits compute in bnb_4bit_compute_dtype.
arguments = TrainingArguments(output, max_steps=int(steps), learning_rate=2e-3, per_device_train_batch_size=4, bf16=True,
                              use_cpu=on_cpu, report_to="none", fsdp=True, fsdp_config={"version": 2})  # fmt: skip
set_seed(arguments.seed)
tokenizer = AutoTokenizer.from_pretrained(model)
rows = load_dataset(data, split="train")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=rows.column_names)
four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
# Each process loads all of the base in 4 bits, on its own GPU; lorank then has it sharded, bit by bit.
base = AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": PartialState().device}
)
adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
allocation = lorank.RankAllocation(method="igu-lora", budget="r=8")
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
trainer = Trainer(adapted, arguments, train_dataset=rows, data_collator=collate)
allocation.attach(trainer)
trainer.train()
trainer.save_model(f"{output}/adapter")  # on every process
if trainer.is_world_process_zero():
    held = lorank.check_saved_adapter(f"{output}/adapter", allocation.plan)
    print(f"{held:,} of {allocation.plan.budget_parameters:,} parameters in {output}/adapter")
trainer.accelerator.wait_for_everyone()  # torchrun ends all processes when one ends badly, and the first is still reading
trainer.accelerator.end_training()
