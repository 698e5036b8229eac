"""The calibration set: a few training examples on which the frozen model is scored before training."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from lorank.methods import METHODS
from lorank.models.loading import autocast_of, load_task_model
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch
from lorank.scoring.one_shot import ScoringInput
from lorank.scoring.options import CalibrationOptions
from lorank.targets import Target
from lorank.tasks.data import TaskData, content_hash
from lorank.tasks.encoding import collator, tokenize


def calibration_rows(recipe: Recipe, rows: Dataset) -> Dataset:
    """Training examples drawn by the recipe's seed. They may be trained on later: nothing is chosen by how well they fit."""
    count = min(recipe.calibration.examples, len(rows))
    return rows.select(sorted(random.Random(f"{recipe.seed}/calibration set").sample(range(len(rows)), count)))


def calibration_batches(recipe: Recipe, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """The examples in padded batches, those of like length together; how they are put together changes no score."""
    encoded = tokenize(rows, tokenizer, recipe)
    order = sorted(range(len(encoded)), key=lambda row: encoded[row]["length"])
    size, collate = recipe.calibration.batch_size, collator(tokenizer, recipe)
    columns = encoded.remove_columns("length")
    return [collate([columns[row] for row in order[start : start + size]]) for start in range(0, len(order), size)]


def subject_of(
    recipe: Recipe,
    model: torch.nn.Module,
    data: TaskData,
    targets: tuple[Target, ...],
    tokenizer: PreTrainedTokenizerBase,
    provenance: Mapping[str, Any],
) -> ScoringInput:
    """What a one-shot method of this recipe looks at."""
    rows = calibration_rows(recipe, data.train)
    own = recipe.calibration.model_dump(include=set(CalibrationOptions.model_fields))
    return ScoringInput(
        model,
        targets,
        calibration_batches(recipe, rows, tokenizer),
        CalibrationOptions(**own),
        seed=recipe.seed,
        provenance={**provenance, "calibration_set": content_hash(rows)},
    )


def score_frozen(
    recipe: Recipe,
    method: str,
    data: TaskData,
    targets: tuple[Target, ...],
    tokenizer: PreTrainedTokenizerBase,
    provenance: Mapping[str, Any],
) -> ImportanceScores:
    """Scores of the recipe's model before any training, with the head that training will start with.

    Raises:
        ScoresError: something that is not finite.

    """
    set_seed(recipe.seed)
    device = processes().device
    model: Any = load_task_model(recipe, data.label_names).model.to(device)
    if recipe.gradient_checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    preset = recipe.preset if method == recipe.method else METHODS[method].default_preset
    subject = subject_of(recipe, model, data, targets, tokenizer, {**provenance, "method": method, "preset": preset})
    scorer = METHODS[method].scorer
    assert scorer is not None, f"{method} does not score a frozen model"
    with autocast_of(recipe):
        return scorer(subject)
