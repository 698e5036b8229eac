"""Short trainings and their losses on held-out training examples: plain LoRA side by side, triplets one after the other."""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from rich.console import Console

from lorank.adapter.convert import to_triplets
from lorank.errors import TrainingError
from lorank.models.base_dtype import autocast_of
from lorank.models.loading import on_own_device
from lorank.models.task_model import TaskModel
from lorank.recipe.sections import TrainingSection
from lorank.scoring.batches import Batch, call, on_device_of, shifts_labels
from lorank.scoring.undisturbed import undisturbed
from lorank.tasks.data import hold_out
from lorank.tasks.encoding import collator
from lorank.tasks.example_losses import example_losses
from lorank.training.epoch_batches import EpochBatches
from lorank.training.prepared import Prepared
from lorank.training.stacked_adapters import StackedAdapters
from lorank.training.stacked_training import check_stackable, losses_of, train_stacked
from lorank.training.stage import initial_config, train_stage

MOST_JUDGED = (
    1250  # examples that are held out: more change a rank no more, and all adapters are judged on each of them
)
FOR_RATES = 0.2  # of these, to choose learning rates by


@dataclass(frozen=True)
class SplitRows:
    """Three parts of the training data, no text in two of them, as tokens.

    Attributes:
        train: to train on.
        rates: to choose learning rates by.
        judged: to judge budgets on.

    """

    train: Dataset
    rates: Dataset
    judged: Dataset


def split_rows(prepared: Prepared, fraction: float, seed: int) -> SplitRows:
    """Hold out `fraction` of the training examples, `MOST_JUDGED` at most; one fifth of them is for learning rates.

    Raises:
        DataError: too few examples.

    """
    rows = prepared.data.train
    train, held = hold_out(rows, min(fraction, MOST_JUDGED / len(rows)), seed)
    judged, rates = hold_out(held, FOR_RATES, seed)
    return SplitRows(*(prepared.tokenize(part) for part in (train, rates, judged)))


class ShortRuns:
    """Short trainings of one base model on the same rows.

    Args:
        prepared: model, data and settings.
        rows: of `split_rows`.
        section: how they train; its length and its rate are given for each.
        steps: optimizer steps of each.
        side_by_side: adapters in one pass; None: all that are asked for.

    """

    def __init__(
        self, prepared: Prepared, rows: SplitRows, section: TrainingSection, steps: int, side_by_side: int | None
    ) -> None:
        self.prepared, self.rows, self.section, self.steps = prepared, rows, section, steps
        self.side_by_side = side_by_side

    def of_ranks(self, ranks: Sequence[int], rates: Sequence[float], seed: int, judged: Dataset) -> np.ndarray:
        """Train a plain LoRA of each uniform rank, with the rate beside it, and judge it.

        Returns:
            Mean loss of each example, `(adapters, examples)` float64; not finite where a rate is too high.

        """
        found, size = [], min(self.side_by_side or len(ranks), len(ranks))
        for start in range(0, len(ranks), size):
            stacked = self._stack(ranks[start : start + size], seed)
            own = rates[start : start + size]
            with self._in_memory(size):
                train_stacked(stacked, self._epochs(seed), self.section, self.steps, own)
                found.append(losses_of(stacked, self._batches(judged)).numpy())
        return np.concatenate(found)

    def check(self, rank: int) -> None:
        """Train one adapter at a time where this model's adapters disturb each other side by side.

        Raises:
            TrainingError: the model trains by another loss than the stock one, so that examples cannot be judged one by one.

        """
        batch = next(iter(self._epochs(0)))
        losses_of(self._stack((rank,), 0), [batch])
        try:
            check_stackable(self._stack((rank, rank), 0), batch)
        except TrainingError:
            self.side_by_side = 1

    def seconds_per_step(self, rank: int) -> float:
        """What an optimizer step of one adapter takes, measured on three adapters side by side."""
        size = min(3, self.side_by_side or 3)
        stacked, batches = self._stack((rank,) * size, 0), self._epochs(0)
        with self._in_memory(size):
            train_stacked(stacked, batches, self.section, 1)
            begun = time.perf_counter()
            train_stacked(stacked, batches, self.section, 2)
        return (time.perf_counter() - begun) / 2 / size

    def of_triplets(self, rank: int, rate: float, seed: int, folder: Path, console: Console) -> float:
        """Train triplets of one rank in every module, without cutting any, and judge them: the mean loss on `rows.rates`.

        Infinite where the rate is too high.
        """
        prepared = self._seeded(seed, checkpoint_every=self.steps, log_every=self.steps)
        task, settings = prepared.load_model(), prepared.settings
        config = initial_config(prepared.targets, task, rank=rank, scale=settings.scale, dropout=settings.lora_dropout)
        model = get_peft_model(task.model, config)
        to_triplets(model, "default")
        section = self.section.model_copy(update={"max_steps": self.steps, "learning_rate": rate})
        shutil.rmtree(folder, ignore_errors=True)
        try:
            train_stage(
                name=f"triplets at {rate:.2g}", prepared=prepared, section=section, directory=folder, model=model,
                rows=self.rows.train, console=console,
            )  # fmt: skip
        except TrainingError:
            return math.inf
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        total, counted = 0.0, 0
        with undisturbed(model), torch.no_grad():
            for batch in self._batches(self.rows.rates):
                moved = on_device_of(model, batch)
                sums, counts = example_losses(call(model, moved).logits, moved["labels"], shifted=shifts_labels(model))
                total, counted = total + float((sums.double() / counts).sum()), counted + len(counts)
        return total / counted

    @contextmanager
    def _in_memory(self, size: int) -> Iterator[None]:
        """The precision of the recipe; memory that is too small for the adapters of a pass is said in words."""
        try:
            with autocast_of("bf16" if self.prepared.settings.precision == "bf16" else "fp32"):
                yield
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"there is not enough memory for {size} adapters side by side; give fewer "
                f"(--side-by-side {max(1, size // 2)}), or lower train.batch_size"
            ) from None

    def _seeded(self, seed: int, **settings: Any) -> Prepared:
        return replace(self.prepared, settings=replace(self.prepared.settings, seed=seed, report_to="none", **settings))

    def _stack(self, ranks: Sequence[int], seed: int) -> StackedAdapters:
        task: TaskModel = self._seeded(seed).load_model()
        targets = self.prepared.targets
        plans = [{target.name: min(rank, target.max_rank) for target in targets} for rank in ranks]
        model = on_own_device(task.model)
        scale = self.prepared.settings.scale
        return StackedAdapters(model, targets, plans, [seed] * len(plans), scale=scale, heads=task.heads)

    def _epochs(self, seed: int) -> EpochBatches:
        return EpochBatches(self.prepared, self.section, self.rows.train, seed)

    def _batches(self, rows: Dataset) -> Iterator[Batch]:
        """Padded batches, those of like length together: the order of the examples is always the same."""
        order = np.argsort(rows["length"][:], kind="stable")
        columns, collate = rows.remove_columns("length"), collator(self.prepared.tokenizer, self.prepared.task_type)
        size = self.section.batch_size
        for start in range(0, len(order), size):
            yield collate([columns[int(row)] for row in order[start : start + size]])
