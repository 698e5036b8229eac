"""The stage of a recipe that decides the ranks while it trains."""

from lorank.engine.options import ScoringSetChoices
from lorank.methods.choose import Chosen
from lorank.recipe.recipe import Recipe
from lorank.runs.scoring_set import split_for_scoring
from lorank.tasks.data import TaskData
from lorank.training.allocation_stage import AllocationStage
from lorank.training.steps import rows_of_an_epoch


def chosen_by(recipe: Recipe) -> Chosen:
    """Method, preset and choices of a recipe whose method allocates while it trains."""
    choices = recipe.choices()
    assert choices is not None, f"{recipe.method} decides before training"
    assert recipe.preset is not None, "a recipe names its preset"
    return Chosen(recipe.method, recipe.preset, choices)


def allocation_stage(recipe: Recipe, data: TaskData) -> AllocationStage:
    """The stage that decides the ranks.

    Args:
        recipe: of a method that allocates while it trains.
        data: whose training part it trains on.

    Raises:
        DataError: no scoring set can be held out.

    """
    chosen, scoring, rows = chosen_by(recipe), None, data.train
    name = f"train, {recipe.method}" if recipe.keeps_triplets else f"search, {recipe.method}"
    if isinstance(chosen.choices, ScoringSetChoices):
        rows, held_out = split_for_scoring(recipe, data)
        scoring = held_out if chosen.choices.measure.source == "held-out" else None
    return AllocationStage(
        name,
        recipe.keeps_triplets,
        chosen,
        recipe.budget,
        recipe.deciding_stage,
        recipe.triplets.initial_rank,
        rows,
        scoring,
        rows_of_an_epoch(recipe.deciding_stage, data, len(rows)),
    )
