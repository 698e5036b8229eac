"""The choices of a method that allocates while it trains, read from a recipe; and the stage that they make."""

from datasets import Dataset

from lorank.engine.options import ScoringSetChoices
from lorank.methods import METHODS
from lorank.methods.choose import Chosen, choose_options
from lorank.recipe.recipe import Recipe
from lorank.runs.scoring_set import split_for_scoring
from lorank.training.allocation_stage import AllocationStage


def choices_of(recipe: Recipe, method: str) -> Chosen:
    """Preset, choices and limits: the recipe's for its own method, the default preset's for a baseline.

    A scoring set and its stage are the recipe's for every method that has one.
    """
    own = method == recipe.method
    if METHODS[method].has_scoring_set:
        section, stage1 = recipe.scoring, recipe.stage1
        shared = set(type(section).model_fields) & set(ScoringSetChoices.model_fields)
        options = ScoringSetChoices(
            **section.model_dump(include=shared),
            scoring_batch_size=section.batch_size,
            curve=stage1.pruning,
            orthogonality=stage1.orthogonality,
            train_on_path=stage1.train_on_path,
            stop_when_stable=stage1.stop_when_stable,
            ending="continue" if recipe.stage2.skip else "retrain",
        )
        preset = recipe.preset if own else None
        return Chosen(method, preset or METHODS[method].default_preset, options, recipe.allocation.model_dump())
    if own:
        assert recipe.preset is not None, "make_recipe names the preset"
        return Chosen(method, recipe.preset, recipe.pruning, recipe.allocation.model_dump())
    return choose_options(method, None, {})


def keeps_triplets(recipe: Recipe, method: str) -> bool:
    """Whether the stage that allocates is the one whose adapter is served; without it a second stage trains the plan."""
    return METHODS[method].allocates_in_training and choices_of(recipe, method).options.ending == "continue"


def allocation_stage(recipe: Recipe, method: str, rows: Dataset) -> AllocationStage:
    """The stage that decides the ranks.

    Args:
        recipe: of the run.
        method: the recipe's, or a baseline.
        rows: the training data.

    Raises:
        DataError: no scoring set can be held out.

    """
    chosen, scoring = choices_of(recipe, method), None
    name = method if chosen.options.ending == "continue" else f"stage 1, {method}"
    if isinstance(chosen.options, ScoringSetChoices):
        name = "stage 1"
        rows, held_out = split_for_scoring(recipe, rows)
        scoring = held_out if chosen.options.source == "held-out" else None
    return AllocationStage(name, chosen, recipe.budget, recipe.stage1, rows, scoring)
