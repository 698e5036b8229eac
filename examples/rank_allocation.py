"""IGU-LoRA in an ordinary Trainer: one callback, and the adapter that comes out is a plain PEFT LoRA.

prepare: python examples/prepare_quickstart.py downloads
usage:   python examples/rank_allocation.py [MODEL TRAIN.tsv OUTPUT STEPS]
"""

import sys

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from lorank import RankAllocation

usual = ["downloads/minilm", "downloads/reuters-r8/train.tsv", "runs/rank_allocation", "150"]
folder, file, output, steps = sys.argv[1:] or usual
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = load_dataset("csv", data_files=file, delimiter="\t", quoting=3, split="train").class_encode_column("label")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=32), remove_columns="text")
base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=rows.features["label"].num_classes)
lora = LoraConfig(r=8, lora_alpha=16, target_modules=r".*layer\..*(query|key|value|dense)", task_type="SEQ_CLS")
arguments = TrainingArguments(
    output, max_steps=int(steps), learning_rate=2e-2, per_device_train_batch_size=32, report_to="none"
)
allocation = RankAllocation(method="igu-lora", budget="r=2")
trainer = Trainer(get_peft_model(base, lora), arguments, train_dataset=rows, processing_class=tokenizer)
allocation.attach(trainer)  # scored by the loss that this Trainer computes
trainer.train()
trainer.save_model(f"{output}/adapter")
print(f"{allocation.plan.spent:,} of {allocation.plan.budget_parameters:,} parameters; plan and heat map in {output}")
