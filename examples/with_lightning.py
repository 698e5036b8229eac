"""AdaLoRA or IGU-LoRA in Lightning: a callback around AllocationLoop, with automatic optimisation and checkpoints.

usage: python examples/with_lightning.py [MODEL DATA OUTPUT STEPS [CHECKPOINT]]

MODEL and DATA are hub names or folders. DATA has the columns text and label. CHECKPOINT goes on where it was stopped.
"""

import sys
from typing import Any

import lightning as L
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from lorank import AllocationLoop


class Ranks(L.Callback):
    """For a LightningModule with the PeftModel as `model` and its loss as `loss(batch)`; put it into a project as it is."""

    def __init__(self, method: str, budget: str, **options: Any) -> None:
        self.chosen, self.options, self.stepped = (method, budget), options, False
        self.allocation: Any = None  # while fit runs: the AllocationLoop

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Make triplets, before Lightning asks for the optimizer."""
        if stage != "fit":
            return
        if trainer.world_size > 1 or trainer.precision.startswith("16"):
            raise ValueError("Ranks is for one device, and for precision 32-true, bf16-mixed or bf16-true")

        def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            with trainer.precision_plugin.forward_context():
                return pl_module.loss(batch)

        half = trainer.precision.startswith("bf16")
        options = self.options | {"steps": trainer.estimated_stepping_batches, "loss": loss, "half": half}
        self.allocation = AllocationLoop(pl_module.model, *self.chosen, **options)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember what is trained on."""
        self.batch = batch

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of a whole step are there, and not yet clipped."""
        self.allocation.after_backward()
        self.allocation.before_step(self.batch)
        self.stepped = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Cut after a step; Lightning clears gradients in the next one."""
        if self.stepped:
            self.allocation.after_step(trainer.optimizers[0])
        self.stepped = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The model's adapter becomes a plain LoRA."""
        self.plan = self.allocation.finish(directory=trainer.default_root_dir)
        self.allocation = None

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self.allocation.state_dict() if self.allocation else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning has loaded the model's weights by now."""
        self.allocation.load_state_dict(state_dict)


class Classifier(L.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, name: str, labels: int) -> None:
        super().__init__()
        base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=labels)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
        # r: the rank to start with. train(): from_pretrained gives a model in eval mode, and Lightning leaves it so.
        self.model = get_peft_model(base, lora).train()

    def loss(self, batch: Any) -> torch.Tensor:
        """The loss that is trained, and that ranks are scored by."""
        return self.model(**batch).loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """One batch."""
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of what trains, λ of the triplets too."""
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-3)


usual = ["distilbert/distilbert-base-uncased", "stanfordnlp/imdb", "runs/lightning", "500"]
name, data, output, steps, *checkpoint = sys.argv[1:] or usual
L.seed_everything(0)
tokenizer = AutoTokenizer.from_pretrained(name)
rows = load_dataset(data, split="train").select_columns(["text", "label"])
module = Classifier(name, labels=len(rows.unique("label")))
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns="text")
batches = torch.utils.data.DataLoader(rows, 16, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer))
ranks = Ranks("igu-lora", budget="r=8")
trainer = L.Trainer(max_steps=int(steps), default_root_dir=output, callbacks=[ranks], gradient_clip_val=1.0)
trainer.fit(module, batches, ckpt_path=checkpoint[0] if checkpoint else None)
module.model.save_pretrained(f"{output}/adapter")  # a plain PEFT LoRA
print(f"{ranks.plan.spent:,} of {ranks.plan.budget_parameters:,} parameters; plan and heat map in {output}")
