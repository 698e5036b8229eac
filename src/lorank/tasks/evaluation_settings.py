"""How a model is evaluated: on which task, by which metrics, in which precision."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import TaskType
from torch import nn
from transformers import TrainingArguments

from lorank.models.quantization import hold_for_sharding
from lorank.processes import only_cpu
from lorank.tasks.section import DataSection

# transformers renames the argument that saves activations; the old name warns.
_NEW = "activation_checkpointing"
CHECKPOINTING = _NEW if _NEW in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"


@dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation needs to know beside the model and the examples.

    Attributes:
        section: the task, and where texts are cut.
        task_type: of the model: a classifier, an encoder-decoder or a decoder.
        metrics: names; None: those that are usual for the task.
        precision: of the forward pass: fp32, bf16 or fp16.
        batch_size: examples side by side; None: what is usual for the task.
        new_tokens: special tokens of the recipe's own, which are part of what is written.

    """

    section: DataSection
    task_type: TaskType
    metrics: tuple[str, ...] | None = None
    precision: str = "fp32"
    batch_size: int | None = None
    new_tokens: tuple[str, ...] = ()

    def arguments(
        self,
        directory: Path,
        batch_size: int,
        *,
        family: type[TrainingArguments] = TrainingArguments,
        **more: Any,
    ) -> TrainingArguments:
        """The same in the words of transformers; it reports to nobody, and Trainer works in `directory`."""
        return family(
            output_dir=str(directory),
            use_cpu=only_cpu(),
            per_device_eval_batch_size=self.batch_size or batch_size,
            bf16=self.precision == "bf16",
            fp16=self.precision == "fp16",
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
            label_names=["labels"],
            dataloader_pin_memory=torch.cuda.is_available(),
            **more,
        )


def shard_for_evaluation(trainer: Any) -> None:
    """Have the Trainer's model sharded before it predicts, where accelerate shards by FSDP2; else do nothing.

    accelerate prepares such a model with an optimizer alone, and a Trainer that only predicts has none to give.
    """
    accelerator = trainer.accelerator
    if not trainer.is_fsdp_enabled or not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = [nn.ParameterList(hold_for_sharding(trainer.model, plugin))]  # nothing trains here
    trainer.model, _ = accelerator.prepare(trainer.model, torch.optim.SGD(trainer.model.parameters()))
    trainer.model_wrapped = trainer.model
