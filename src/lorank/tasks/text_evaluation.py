"""What a model writes for the prompts of the test part, and how good it is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from lorank.artefact import write_text
from lorank.models.base_dtype import autocast_of
from lorank.models.loading import quiet_loading
from lorank.processes import processes
from lorank.tasks.encoding import collator, tokenize
from lorank.tasks.evaluation_settings import EvaluationSettings, shard_for_evaluation
from lorank.tasks.example_losses import example_losses, right_tokens
from lorank.tasks.loss_file import LOSSES, write_losses
from lorank.tasks.metrics import TOKENS, Metric, choose_metrics, need_texts
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import IGNORED

BATCH = 16  # texts that are written side by side
_TOKENS_AT_A_TIME = 4096
# What models return beside logits, none of which a loss needs.
_NOT_LOGITS = [
    *("past_key_values", "hidden_states", "attentions", "decoder_hidden_states", "decoder_attentions"),
    *("cross_attentions", "encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
]


class LossTrainer(Trainer):
    """transformers' trainer whose predictions are the summed loss and the number of targets of each example."""

    shifted = False  # a decoder's position predicts the token behind it
    counts_right = False  # a third number: how many targets are the likeliest token

    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        """Evaluate one batch; logits, which are large, do not leave it."""
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys=_NOT_LOGITS)
        first = logits[0] if isinstance(logits, tuple) else logits
        sums, counts = example_losses(first, labels, shifted=self.shifted)
        found = [sums, counts.float()]
        if self.counts_right:
            found.append(right_tokens(first, labels, shifted=self.shifted).float())
        return loss, torch.stack(found, 1), None


class Writer(Seq2SeqTrainer):
    """transformers' trainer that generates; what a decoder has read is taken off what it has written."""

    strips_prompt = False  # an encoder-decoder writes a text of its own

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """Generate for one batch of prompts that are padded at the left."""
        loss, written, labels = super().prediction_step(model, inputs, *args, **options)
        if written is not None and self.strips_prompt:
            written = written[:, inputs["input_ids"].shape[1] :].contiguous()
        return loss, written, labels


def by_length(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings
) -> tuple[np.ndarray, Dataset]:
    """The order of rows from the shortest on, in which less is padded, and their tokens in that order, without lengths."""
    encoded = tokenize(rows, tokenizer, settings.section, settings.task_type)
    order = np.argsort(encoded["length"], kind="stable")
    return order, encoded.select(order).remove_columns("length")


def kept_losses(
    model: nn.Module,
    sorted_rows: tuple[np.ndarray, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
    **options: Any,
) -> tuple[float, np.ndarray]:
    """`text_losses` of rows of `by_length`; those of examples are left in `directory/losses.npy`, in the order of the data."""
    order, encoded = sorted_rows
    loss, losses = text_losses(model, encoded, tokenizer, settings, directory, **options)
    if processes().is_main_process:
        write_losses(directory / LOSSES, losses[:, 0], losses[:, 1], order)
    return loss, losses


def evaluate_texts(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
) -> tuple[dict[str, float], float]:
    """Metrics of what the model writes, greedily or with `data.beams`, and the mean loss of a target's token.

    What was written stands in `directory/predictions.jsonl`, with prompt and target, shortest first; nothing is written where
    no metric needs it. The losses of examples are left in `directory/losses.npy`.
    """
    section, decoder = settings.section, settings.task_type == TaskType.CAUSAL_LM
    chosen = choose_metrics(section.task, settings.metrics)
    order, encoded = by_length(rows, tokenizer, settings)
    loss, found = kept_losses(model, (order, encoded), tokenizer, settings, directory, counts_right=True)
    values = _of_tokens(chosen, found)
    if not need_texts(chosen):
        return values, loss
    rows = rows.select(order)
    # A decoder's row is the prompt, whose labels are left out, and the target behind it.
    prompts = [row["input_ids"][: row["labels"].count(IGNORED)] if decoder else row["input_ids"] for row in encoded]
    written = write_texts(model, prompts, tokenizer, settings, directory)
    targets = list(rows["target"])
    if processes().is_main_process:
        told = zip(rows["prompt"], rows["cue"], targets, written, strict=True)
        lines = [json.dumps({"prompt": p + c, "target": t, "written": w}, ensure_ascii=False) for p, c, t, w in told]
        write_text(directory / "predictions.jsonl", "\n".join([*lines, ""]))
    return {name: values[name] if name in values else metric(targets, written) for name, metric in chosen.items()}, loss


def write_texts(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
    *,
    tokens: int | None = None,
) -> list[str]:
    """What a model writes for prompts, greedily or with `data.beams`.

    Args:
        model: that writes.
        prompts: tokens of each.
        tokenizer: of the base model.
        settings: kind of model, beams and precision.
        directory: Trainer's to work in.
        tokens: most that are written; None: as many as a target of the task has.

    """
    decoder = settings.task_type == TaskType.CAUSAL_LM
    asked = Dataset.from_dict({"input_ids": prompts, "attention_mask": [[1] * len(ids) for ids in prompts]})
    side, tokenizer.padding_side = tokenizer.padding_side, "left" if decoder else tokenizer.padding_side
    try:
        writer = Writer(
            model=model,
            args=settings.arguments(directory, BATCH, family=Seq2SeqTrainingArguments, predict_with_generate=True),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        writer.strips_prompt = decoder
        generation = _generation(model, settings.section, tokenizer, tokens or settings.section.target_length)
        # Seq2SeqTrainer gives the model a max_length of its own after the first batch, and generate warns of it.
        # Trainer's autocast reaches forward, and `generate` of an adapted model goes past it.
        with quiet_loading(), autocast_of(settings.precision):
            ids: Any = writer.predict(asked, generation_config=generation).predictions
    finally:
        tokenizer.padding_side = side
    ids = np.where(ids == IGNORED, tokenizer.pad_token_id, ids)  # how processes and batches are made equally long
    return [text_of(tokenizer, row, settings.new_tokens) for row in ids]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], new_tokens: Sequence[str] = ()) -> str:
    """The text of tokens, without special ones but those that the recipe has added: they may be what is to be written."""
    kept = set(tokenizer.convert_tokens_to_ids(list(new_tokens))) if new_tokens else set()
    left_out = set(tokenizer.all_special_ids) - kept
    return str(tokenizer.decode([int(token) for token in ids if int(token) not in left_out])).strip()


def evaluate_tokens(
    model: nn.Module,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
) -> tuple[dict[str, float], float]:
    """Metrics and mean loss over all target tokens of rows of chat, completion or text; nothing is generated.

    The losses of examples are left in `directory/losses.npy`.
    """
    # Logits are as large as the vocabulary: about so many tokens at a time.
    at_a_time = max(1, min(BATCH, _TOKENS_AT_A_TIME // settings.section.max_length))
    sorted_rows = by_length(rows, tokenizer, settings)
    _, found = kept_losses(model, sorted_rows, tokenizer, settings, directory, batch=at_a_time, counts_right=True)
    loss, targets = (float(column.sum(dtype="float64")) for column in found.T[:2])
    return _of_tokens(choose_metrics(settings.section.task, settings.metrics), found), loss / targets


def _of_tokens(chosen: Mapping[str, Metric], found: np.ndarray) -> dict[str, float]:
    """Those of the metrics that are of tokens, from `text_losses` of all rows, with `counts_right`."""
    loss, targets, right = (float(column.sum(dtype="float64")) for column in found.T)
    return {name: metric(loss / targets, right / targets) for name, metric in chosen.items() if name in TOKENS}


def _generation(model: Any, section: DataSection, tokenizer: PreTrainedTokenizerBase, tokens: int) -> GenerationConfig:
    """The model's special tokens; greedy or by beams, without penalties, and at most so many tokens."""
    settings = deepcopy(model.generation_config)
    sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    penalties = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0, "early_stopping": False}
    length = {"max_length": None, "min_length": 0, "max_new_tokens": tokens}
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    # What was taught as the end of a text ends it.
    known = sorted({one for one in (*ends, tokenizer.eos_token_id) if one is not None})
    settings.update(**sampling, **penalties, **length, num_beams=section.beams, eos_token_id=known)
    return settings


def text_losses(
    model: nn.Module,
    encoded: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
    *,
    batch: int = BATCH,
    counts_right: bool = False,
) -> tuple[float, np.ndarray]:
    """Loss of each row's target.

    Args:
        model: that writes.
        encoded: of `tokenize`, without lengths.
        tokenizer: of the base model.
        settings: kind of model and precision.
        directory: Trainer's to work in.
        batch: rows side by side.
        counts_right: whether the targets that are the likeliest token are counted.

    Returns:
        Mean loss as Trainer counts it (of the means of batches), and float32 `(rows, 2)`: the summed loss of each row and its
        number of targets; with `counts_right` a third column.

    """
    trainer = LossTrainer(
        model=model, args=settings.arguments(directory, batch), data_collator=collator(tokenizer, settings.task_type)
    )
    trainer.counts_right = counts_right
    trainer.shifted = settings.task_type == TaskType.CAUSAL_LM
    shard_for_evaluation(trainer)
    output = trainer.predict(encoded, metric_key_prefix="test")
    return float(output.metrics["test_loss"]), np.asarray(output.predictions)
