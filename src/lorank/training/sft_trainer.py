"""TRL's SFTTrainer as the trainer of a stage, on rows that are tokens already."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorank.errors import RecipeError
from lorank.models.base_dtype import is_narrow
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import IGNORED
from lorank.training.trainer import StageTrainer

# How much the logits of a row may change, in their standard deviations, where it is computed in another shape.
_NOISE, _NARROW_NOISE = 1e-3, 0.2


class SFTStageTrainer(StageTrainer, SFTTrainer):
    """SFTTrainer with what `StageTrainer` adds. As TRL has it, every token of an optimizer step weighs the same."""

    weighs_tokens = True
    aux_loss_enabled: bool  # SFTTrainer's: whether the loss of a model with experts has that of its routers in it

    def __init__(self, *, model: nn.Module, **options: Any) -> None:
        with _trained_in_fp32(model):
            super().__init__(model=model, **options)
        self._head_trains = isinstance(self.model.get_output_embeddings(), AuxiliaryTrainingWrapper)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Trainer's, but the loss is the mean over all target tokens, as it is reported; without the auxiliary loss of routers.

        Trainer's own is a mean over rows of the means of their batches, which packing and the lengths of rows would change.
        """
        self._loss_and_targets = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        auxiliary, self.aux_loss_enabled = self.aux_loss_enabled, False
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        finally:
            self.aux_loss_enabled = auxiliary
        loss, targets = self.accelerator.reduce(self._loss_and_targets, reduction="sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / max(targets, 1)
        return output

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """Evaluate one batch, and add its loss up."""
        targets = (inputs["labels"][:, 1:] != IGNORED).sum().to(self.args.device)
        loss, logits, labels = super().prediction_step(model, inputs, *args, **options)
        self._loss_and_targets += torch.stack([loss.double() * targets, targets.double()])
        return loss, logits, labels

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


def check_rows_apart(model: Any, section: DataSection) -> None:
    """Refuse packing and rows without padding where a model lets them see each other: many look at the attention mask alone.

    Two short rows of random tokens are given behind each other, as they are trained on; the second has to give what it gives
    alone.

    Raises:
        RecipeError: it does not.

    """
    if not (section.packing or section.padding_free):
        return
    source = torch.Generator().manual_seed(0)
    words = model.get_input_embeddings().weight.shape[0]
    rows = [{"input_ids": torch.randint(words, (length,), generator=source).tolist()} for length in (7, 9)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together, alone = (_logits(model, given) for given in (rows, rows[1:]))
    finally:
        model.train(was_training)
    difference = float((together[7:] - alone).abs().max() / alone.std())
    if not difference < (_NARROW_NOISE if is_narrow(model) else _NOISE):
        key = "packing" if section.packing else "padding_free"
        raise RecipeError(
            f"data.{key}: in {type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__} rows that stand "
            "behind each other see each other (the logits of a row change by what stands before it); set it to false"
        )


def _logits(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    batch = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
    del batch["labels"]
    return torch.as_tensor(model(**batch, use_cache=False).logits[0]).float()


def sft_options(section: DataSection, *, streamed: bool) -> dict[str, Any]:
    """Options of `SFTConfig` for rows of `Prepared.stage_rows`: tokens, packed already unless they are `streamed`."""
    if streamed:
        return {"max_length": section.max_length, "packing": section.packing}
    return {
        "max_length": None,
        "packing": section.packing,
        "padding_free": section.padding_free,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }


__all__ = ["SFTConfig", "SFTStageTrainer", "check_rows_apart", "sft_options"]
