"""What an adapted decoder has forgotten: its loss on general text, beside that of the base model."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, TaskType
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorank.artefact import read_plain_text
from lorank.errors import DataError, RecipeError
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.section import GENERAL_TEXT, DataSection
from lorank.tasks.text_evaluation import text_losses


def check_general_text(tokenizer: PreTrainedTokenizerBase, section: DataSection, task_type: TaskType) -> None:
    """Refuse general text that cannot be read, or a model that does not continue a text, before anything is trained.

    Raises:
        RecipeError: the model is not a decoder.
        DataError: no such file, or too little in it.

    """
    if section.general_text is None:
        return
    if task_type != TaskType.CAUSAL_LM:
        raise RecipeError("data.general_text is for decoders, which continue a text; leave it out with this model")
    general_rows(tokenizer, section)


def general_rows(tokenizer: PreTrainedTokenizerBase, section: DataSection) -> Dataset:
    """The text in pieces as long as the longest example: `input_ids`, `attention_mask`, `labels`; every token is a target.

    Raises:
        DataError: no such file, or fewer than two tokens.

    """
    path = Path(str(section.general_text))
    try:
        text = read_plain_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.general_text: {path} cannot be read ({error}); give a UTF-8 text file") from None
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < 2:
        raise DataError(f"data.general_text: {path} has {len(ids)} tokens; give a text of some thousand")
    with_marks = list(tokenizer("")["input_ids"])
    begin = with_marks[:1] if with_marks[:1] == [tokenizer.bos_token_id] else []
    size = section.max_length + section.target_length - len(begin)
    # A last piece of one token has nothing to predict it from.
    pieces = [begin + ids[at : at + size] for at in range(0, len(ids), size) if begin or at + 1 < len(ids)]
    columns = {"input_ids": pieces, "attention_mask": [[1] * len(piece) for piece in pieces], "labels": pieces}
    return Dataset.from_dict(columns)


def general_losses(
    model: nn.Module,
    base: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
) -> dict[str, Any]:
    """Mean loss of a token of the general text, as a further test part: of the model, and of the base that it was made from.

    Args:
        model: a decoder, adapted or trained whole.
        base: the base model; None: the model itself, its adapter switched off.
        tokenizer: of the base model.
        settings: names the text; precision.
        directory: Trainer's to work in.

    Returns:
        `metrics` with `loss` and `base loss`, and `loss` again, as other parts have it.

    """
    rows = general_rows(tokenizer, settings.section)

    def loss(one: nn.Module) -> float:
        _, losses = text_losses(one, rows, tokenizer, settings, directory / GENERAL_TEXT)
        return float(losses[:, 0].sum(dtype="float64") / losses[:, 1].sum(dtype="float64"))

    adapted = loss(model)
    with model.disable_adapter() if base is None and isinstance(model, PeftModel) else nullcontext():
        before = loss(model if base is None else base)
    return {"metrics": {"loss": adapted, "base loss": before}, "loss": adapted}
