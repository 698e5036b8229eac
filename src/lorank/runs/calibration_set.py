"""The calibration set: a few training examples on which the frozen model is scored before training."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from lorank.methods import METHODS
from lorank.models.loading import autocast_of
from lorank.processes import processes
from lorank.recipe.sections import CalibrationSection
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch
from lorank.scoring.one_shot import ScoringInput
from lorank.scoring.options import CalibrationOptions
from lorank.targets import Target
from lorank.tasks.data import content_hash
from lorank.tasks.encoding import collator
from lorank.training.prepared import Prepared


def calibration_rows(rows: Dataset, examples: int, seed: int) -> Dataset:
    """Training examples drawn by the seed. They may be trained on later: nothing is chosen by how well they fit."""
    count = min(examples, len(rows))
    return rows.select(sorted(random.Random(f"{seed}/calibration set").sample(range(len(rows)), count)))


def calibration_batches(prepared: Prepared, rows: Dataset, size: int) -> list[Batch]:
    """The examples in padded batches, those of like length together; how they are put together changes no score."""
    encoded = prepared.tokenize(rows)
    order = sorted(range(len(encoded)), key=lambda row: encoded[row]["length"])
    collate = collator(prepared.tokenizer, prepared.task_type)
    columns = encoded.remove_columns("length")
    return [collate([columns[row] for row in order[start : start + size]]) for start in range(0, len(order), size)]


def subject_of(
    prepared: Prepared,
    calibration: CalibrationSection,
    model: torch.nn.Module,
    targets: tuple[Target, ...],
    provenance: Mapping[str, Any],
) -> ScoringInput:
    """What a one-shot method looks at."""
    seed = prepared.settings.seed
    rows = calibration_rows(prepared.data.train, calibration.examples, seed)
    own = calibration.model_dump(include=set(CalibrationOptions.model_fields))
    return ScoringInput(
        model,
        targets,
        calibration_batches(prepared, rows, calibration.batch_size),
        CalibrationOptions(**own),
        seed=seed,
        provenance={**provenance, "calibration_set": content_hash(rows)},
    )


def score_frozen(
    prepared: Prepared, calibration: CalibrationSection, method: str, preset: str | None
) -> ImportanceScores:
    """Scores of the base model before any training, with the head that training will start with.

    Raises:
        ScoresError: something that is not finite.

    """
    model: Any = prepared.load_model().model.to(processes().device)
    if prepared.settings.gradient_checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    provenance = {**prepared.provenance, "method": method, "preset": preset}
    subject = subject_of(prepared, calibration, model, prepared.targets, provenance)
    scorer = METHODS[method].scorer
    assert scorer is not None, f"{method} does not score a frozen model"
    with autocast_of(prepared.settings.precision):
        return scorer(subject)
