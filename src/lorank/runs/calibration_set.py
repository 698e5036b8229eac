"""The calibration set: a few training examples on which the frozen model is scored before training."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from lorank.methods import METHODS
from lorank.models.base_dtype import autocast_of
from lorank.models.loading import on_own_device
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import CalibrationSet
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


def calibration_set_of(recipe: Recipe) -> CalibrationSet:
    """How many examples are looked at, at a time: the recipe's, or the defaults where its method looks at none."""
    return recipe.measure if isinstance(recipe.measure, CalibrationSet) else CalibrationSet()


def scoring_input(
    prepared: Prepared,
    recipe: Recipe,
    model: torch.nn.Module,
    targets: tuple[Target, ...],
    provenance: Mapping[str, Any],
) -> ScoringInput:
    """What a method that decides before training looks at."""
    seed, calibration = prepared.settings.seed, calibration_set_of(recipe)
    data = prepared.data
    rows = calibration_rows(data.scoring or data.train, calibration.examples, seed)
    return ScoringInput(
        model,
        targets,
        calibration_batches(prepared, rows, calibration.batch_size),
        _options_of(recipe),
        seed=seed,
        provenance={**provenance, "calibration_set": content_hash(rows)},
    )


def _options_of(recipe: Recipe) -> CalibrationOptions:
    """Options of the method's scorer."""
    preset = METHODS[recipe.method].default.measure
    if recipe.measure is None or not isinstance(preset, CalibrationOptions):
        return CalibrationOptions()
    values = recipe.measure.model_dump(include=set(type(preset).model_fields), exclude_unset=True)
    return type(preset)(**values)


def score_frozen(prepared: Prepared, recipe: Recipe) -> ImportanceScores:
    """Scores of the base model before any training, with the head that training will start with.

    Raises:
        ScoresError: something that is not finite.

    """
    model: Any = on_own_device(prepared.load_model().model)
    if prepared.settings.gradient_checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    choices = {
        "ranks": recipe.ranks.model_dump(mode="json")
    }  # plans from these scores are allocated as the recipe says
    provenance = {**prepared.provenance, "method": recipe.method, "preset": recipe.preset, "choices": choices}
    scoring = scoring_input(prepared, recipe, model, prepared.targets, provenance)
    with autocast_of(prepared.settings.precision):
        return METHODS[recipe.method].score(scoring)
