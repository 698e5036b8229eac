"""Metrics and mean loss of a model on the test part."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer

from lorank.errors import LorankWarning
from lorank.processes import processes
from lorank.tasks.collapse import warn_of_one_class
from lorank.tasks.data import TaskData
from lorank.tasks.encoding import tokenize
from lorank.tasks.evaluation_settings import EvaluationSettings, shard_for_evaluation
from lorank.tasks.example_losses import example_losses
from lorank.tasks.loss_file import LOSSES, write_losses
from lorank.tasks.metrics import choose_metrics
from lorank.tasks.text_evaluation import evaluate_texts, evaluate_tokens

BATCH = 64  # examples that are classified side by side


def evaluate(
    model: nn.Module,
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    directory: Path,
) -> tuple[dict[str, float | None], float | None]:
    """Evaluate a model on the test part; the loss of each example is left in `directory/losses.npy` (`write_losses`).

    Args:
        model: with a head for the task.
        data: its `test` is evaluated on.
        tokenizer: of the base model.
        settings: task, metrics and precision.
        directory: Trainer's to work in; texts that are written stand there in `predictions.jsonl`.

    Returns:
        Name of a metric -> value, and the mean loss; None where one is not defined for these predictions.

    Warns:
        LorankWarning: for each that is not defined; and where a classifier predicts a single class.

    """
    section, test = settings.section, data.needs_test("to evaluate a model")
    if section.writes:
        measure = evaluate_tokens if section.is_sft else evaluate_texts
        values, mean = measure(model, test, tokenizer, settings, directory)
        return {name: _defined(name, value) for name, value in values.items()}, _defined("loss", mean)
    rows: Dataset = tokenize(test, tokenizer, section, settings.task_type)
    order = np.argsort(rows["length"], kind="stable")  # less padding
    rows = rows.select(order).remove_columns("length")
    trainer = Trainer(
        model=model, args=settings.arguments(directory, BATCH), data_collator=DataCollatorWithPadding(tokenizer)
    )
    shard_for_evaluation(trainer)
    output = trainer.predict(rows, metric_key_prefix="test")
    # Encoder-decoders return more than logits; these come first.
    first = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    logits, labels = np.asarray(first), np.asarray(output.label_ids)
    if processes().is_main_process:
        sums, counts = example_losses(torch.from_numpy(logits), torch.from_numpy(labels))
        write_losses(directory / LOSSES, sums.numpy(), counts.numpy(), order)
    predicted = logits.reshape(-1) if section.task == "regression" else logits.argmax(-1)
    if section.task == "classification":
        warn_of_one_class(predicted, labels, data.label_names)
    chosen = choose_metrics(section.task, settings.metrics, len(data.label_names))
    metrics = {name: _defined(name, metric(labels, predicted)) for name, metric in chosen.items()}
    return metrics, _defined("loss", float(output.metrics["test_loss"]))


def _defined(name: str, value: float) -> float | None:
    if math.isfinite(value):
        return value
    warnings.warn(
        f"{name} is not defined for these predictions ({value}); it is recorded as null", LorankWarning, stacklevel=3
    )
    return None
