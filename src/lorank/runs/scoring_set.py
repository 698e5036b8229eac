"""The scoring set: held out of the training data, disjoint from what the stage that decides the ranks trains on."""

from datasets import Dataset

from lorank.engine.options import ScoringSetChoices
from lorank.errors import DataError
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import ScoringSet
from lorank.tasks.data import TaskData, hold_out
from lorank.training.steps import rows_of_an_epoch, stage_steps


def split_for_scoring(recipe: Recipe, data: TaskData) -> tuple[Dataset, Dataset]:
    """What the stage that decides trains on, and the scoring set; cheap, so that it can be checked before anything expensive.

    Raises:
        DataError: a side too small for one batch.

    """
    options, stage = recipe.measure, recipe.deciding_stage
    name = "train" if recipe.keeps_triplets else "search"
    assert isinstance(options, ScoringSet)
    rows = data.train
    train, scoring = scoring_rows(recipe, data)
    if len(scoring) < options.scoring_batch_size:
        raise DataError(
            f"measure.fraction {options.fraction} holds out {len(scoring)} of {len(rows)} examples, less than one batch of "
            f"{options.scoring_batch_size}; raise measure.fraction or lower measure.scoring_batch_size"
        )
    if not data.streams and len(train) < stage.batch_size:
        raise DataError(
            f"measure.fraction {options.fraction} leaves {len(train)} of {len(rows)} examples to train on, less than one batch "
            f"of {stage.batch_size}; lower measure.fraction or {name}.batch_size"
        )
    choices = recipe.choices()
    assert isinstance(choices, ScoringSetChoices)
    steps, measure = stage_steps(stage, rows_of_an_epoch(stage, data, len(train))), choices.measure
    counted = (steps - int(measure.warmup * steps)) // measure.every
    if measure.when == "during" and counted < 1:
        raise DataError(
            f"{name} has {steps} steps, of which measure.warmup {measure.warmup} and measure.every {measure.every} leave none "
            f"to score at; lower them or train longer ({name}.max_steps)"
        )
    return train, scoring


def scoring_rows(recipe: Recipe, data: TaskData) -> tuple[Dataset, Dataset]:
    """What the stage that decides trains on, and what is scored on, of whatever size.

    Raises:
        DataError: a side would be empty.

    """
    options = recipe.measure
    assert isinstance(options, ScoringSet)
    if getattr(options, "source", None) == "training":
        return data.train, data.train
    if data.scoring is not None:
        return data.train, data.scoring
    return hold_out(data.train, options.fraction, recipe.seed)
