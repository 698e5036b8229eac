"""The scoring set: held out of the training data, disjoint from what stage 1 trains on, served in numbered batches."""

import random
from typing import Any

import torch
from datasets import Dataset

from lorank.errors import DataError
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import ScoringSection
from lorank.scoring.batches import Batch
from lorank.tasks.data import hold_out
from lorank.training.steps import stage_steps


def split_for_scoring(recipe: Recipe, rows: Dataset) -> tuple[Dataset, Dataset]:
    """What stage 1 trains on, and the scoring set; cheap, so that it can be checked before anything expensive.

    Raises:
        DataError: a side too small for one batch.

    """
    options = recipe.scoring
    train, scoring = scoring_rows(rows, options, recipe.seed)
    if len(scoring) < options.batch_size:
        raise DataError(
            f"scoring.fraction {options.fraction} holds out {len(scoring)} of {len(rows)} examples, less than one batch of "
            f"{options.batch_size}; raise scoring.fraction or lower scoring.batch_size"
        )
    if len(train) < recipe.stage1.batch_size:
        raise DataError(
            f"scoring.fraction {options.fraction} leaves {len(train)} of {len(rows)} examples to train stage 1 on, less than "
            f"one batch of {recipe.stage1.batch_size}; lower scoring.fraction or stage1.batch_size"
        )
    steps = stage_steps(recipe.stage1, len(train))
    counted = (steps - int(options.warmup * steps)) // options.every
    if options.when == "during" and counted < 1:
        raise DataError(
            f"stage 1 has {steps} steps, of which scoring.warmup {options.warmup} and scoring.every {options.every} leave none "
            "to score at; lower them or train stage 1 longer"
        )
    return train, scoring


def scoring_rows(rows: Dataset, options: ScoringSection, seed: int) -> tuple[Dataset, Dataset]:
    """What stage 1 trains on, and what it is scored on, of whatever size.

    Raises:
        DataError: a side would be empty.

    """
    if options.source == "training":
        return rows, rows
    return hold_out(rows, options.fraction, seed)


class ScoringBatches:
    """Batches of the scoring set by number: full ones only, reshuffled each time round, a function of seed and number."""

    def __init__(self, rows: Dataset, collate: Any, recipe: Recipe) -> None:
        self.size, self.seed = recipe.scoring.batch_size, recipe.seed
        self._rows = rows.remove_columns("length")
        self._collate = collate
        self._order: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        """How many batches there are until examples come again."""
        return len(self._rows) // self.size

    def batch(self, draw: int, device: torch.device) -> Batch:
        """Batch number `draw`, padded, on `device`."""
        time_round, start = draw // len(self), draw % len(self) * self.size
        if self._order is None or self._order[0] != time_round:
            order = list(range(len(self._rows)))
            random.Random(f"{self.seed}/scoring batches/{time_round}").shuffle(order)
            self._order = time_round, order
        columns = self._rows[self._order[1][start : start + self.size]]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {key: value.to(device) for key, value in self._collate(rows).items()}
