"""TRL's SFTTrainer as the trainer of a stage, on rows that are tokens already."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from lorank.tasks.section import DataSection
from lorank.training.trainer import StageTrainer


class SFTStageTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with what `StageTrainer` adds. As TRL has it, every token of an optimizer step weighs the same."""

    weighs_tokens = True

    def __init__(self, *, model: nn.Module, **options: Any) -> None:
        with _trained_in_fp32(model):
            super().__init__(model=model, **options)
        self._head_trains = isinstance(self.model.get_output_embeddings(), AuxiliaryTrainingWrapper)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """TRL's, by the weights of the language model's head. Where parts of the head train, the model's own, which has them."""
        if self._head_trains:
            return Trainer.compute_loss(self, model, inputs, *args, **options)
        return super().compute_loss(model, inputs, *args, **options)


@contextmanager
def _trained_in_fp32(model: nn.Module) -> Iterator[None]:
    """SFTTrainer rounds what is trained on a quantised base to bf16; ours stays fp32, whatever the base."""
    flags = [name for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if getattr(model, name, False)]
    own = {name: vars(model)[name] for name in flags if name in vars(model)}
    for name in flags:
        setattr(model, name, False)
    try:
        yield
    finally:
        for name in flags:
            delattr(model, name)
        for name, value in own.items():
            setattr(model, name, value)


def sft_options(section: DataSection, *, streamed: bool) -> dict[str, Any]:
    """Options of `SFTConfig` for rows of `Prepared.stage_rows`: cut, labelled and packed already, unless they are `streamed`."""
    if streamed:
        only = bool(section.assistant_only)
        return {"max_length": section.max_length, "packing": section.packing, "assistant_only_loss": only}
    return {
        "max_length": None,
        "packing": section.packing,
        "padding_free": section.padding_free,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


__all__ = ["SFTConfig", "SFTStageTrainer", "sft_options"]
