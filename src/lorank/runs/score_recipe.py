"""`lorank score`: a recipe's model scored before training, into a file; and whether such a file is of a model."""

from pathlib import Path

from rich.console import Console

from lorank.artefact import check_file
from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.models.loading import load_without_weights
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.runs.calibration_set import score_frozen
from lorank.runs.prepare import prepare
from lorank.scores import ImportanceScores


def score_recipe(recipe: Recipe, output: Path, console: Console | None = None) -> ImportanceScores:
    """Score the model of a recipe on its calibration set and write the scores.

    Raises:
        RecipeError: a method that does not score a frozen model.
        LorankError: bad input, found before anything expensive.

    """
    if METHODS[recipe.method].scorer is None:
        known = ", ".join(name for name, method in METHODS.items() if method.scorer)
        raise RecipeError(
            f"method {recipe.method} does not score a frozen model, its scores come from `lorank run`; to score before training "
            f"give --method, one of {known}"
        )
    check_file(output)
    processes().wait_for_everyone()  # until none looks any more whether the output is there already
    recipe, prepared = prepare(recipe, (recipe.method,), console)
    if console is not None and processes().is_main_process:
        console.print(f"{recipe.method}: scoring the frozen model", highlight=False)
    scores = score_frozen(prepared, recipe)
    if processes().is_main_process:
        scores.save(output)
    return scores


def check_scores(path: Path, model: str) -> None:
    """Refuse scores that are not of this model's modules; its config alone is read.

    Raises:
        ScoresError: names the first module that differs.

    """
    ImportanceScores.load(path).check_model(load_without_weights(model))
