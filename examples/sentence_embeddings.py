"""Sentence embeddings (sentence-transformers) with IGU-LoRA: ranks are scored by the loss that the trainer was given.

usage: python examples/sentence_embeddings.py [MODEL DATA OUTPUT STEPS]

MODEL and DATA are hub names or folders. DATA has two columns of texts that belong together, a question and its answer.
"""

import sys

from datasets import load_dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from lorank import RankAllocation

usual = ["sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/natural-questions", "runs/embeddings", "500"]
name, data, output, steps = sys.argv[1:] or usual
model = SentenceTransformer(name)
# r: the rank to start with. An embedding is the mean of the tokens: the model's pooler has no influence on it.
model.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["pooler.dense"]))
trainer = SentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments(
        output, max_steps=int(steps), learning_rate=1e-3, per_device_train_batch_size=32, report_to="none"
    ),
    train_dataset=load_dataset(data, split="train"),
    loss=MultipleNegativesRankingLoss(model),
)
allocation = RankAllocation("igu-lora", budget="r=8").attach(trainer)
trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on where it was stopped
# SentenceTransformer(f"{output}/model") reads it; so does PEFT, as a plain LoRA.
model.save_pretrained(f"{output}/model")
print(f"{allocation.plan.spent:,} of {allocation.plan.budget_parameters:,} parameters; plan and heat map in {output}")
