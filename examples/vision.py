"""IGU-LoRA for an image classifier: a Vision Transformer in an ordinary Trainer, on images that are made here.

usage: python examples/vision.py [OUTPUT STEPS [MODEL]]

MODEL is the folder or the hub name of a ViT ("google/vit-base-patch16-224-in21k"); without it a small random one is made.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from lorank import RankAllocation

output, steps, *more = sys.argv[1:] or ["runs/vision", "100"]
set_seed(0)
if more:
    base = ViTForImageClassification.from_pretrained(more[0], num_labels=2)
else:
    small = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    base = ViTForImageClassification(ViTConfig(**small, num_attention_heads=2, num_labels=2, initializer_range=0.1))
size = base.config.image_size

# Noise in which one colour is brighter: 0 is red, 1 is blue.
images, labels = torch.randn(256, 3, size, size), torch.arange(256) % 2
images[labels == 0, 0] += 1
images[labels == 1, 2] += 1
rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

# All linear layers of the blocks (query, key, value and dense in older transformers); the new head trains whole beside them and
# is not in the budget.
blocks = r".*layers?\..*(_proj|fc\d|query|key|value|dense)"
lora = LoraConfig(r=8, lora_alpha=16, target_modules=blocks, modules_to_save=["classifier"])
arguments = TrainingArguments(
    output, max_steps=int(steps), learning_rate=5e-3, per_device_train_batch_size=16, logging_steps=10, report_to="none"
)
allocation = RankAllocation("igu-lora", budget="r=2", every=1)
trainer = Trainer(get_peft_model(base, lora), arguments, train_dataset=rows[:224], eval_dataset=rows[224:])
allocation.attach(trainer)
trainer.train()
print(f"loss on images that were not trained on: {trainer.evaluate()['eval_loss']:.3f}")
trainer.save_model(f"{output}/adapter")  # plain PEFT LoRA, with a card
