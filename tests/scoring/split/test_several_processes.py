"""Scores of two gloo processes on the CPU are those of one. All cases are in one start, which takes longer than they do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.scoring.split.two_processes import save_scores
from tests.test_processes import launched

from lorank import ImportanceScores
from lorank.recipe.recipe import Recipe
from lorank.runs.score_recipe import score_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*negative and counts as zero", "ignore:the standard error of the trace"),
    pytest.mark.filterwarnings("ignore:the short training made the held-out loss larger"),
]


def launch(folder: Path) -> str:
    """Have both processes check their cases; returns what they printed."""
    save_scores(folder)
    done = launched("tests.scoring.split.two_processes", str(folder))
    assert all((folder / f"process {number} is done").is_file() for number in (0, 1))
    assert "2 processes: all read the same loader, and each process passes its share" in done.stderr
    return done.stdout


def test_two_processes_give_the_scores_of_one(tmp_path: Path) -> None:
    launch(tmp_path)


@pytest.mark.long
def test_loaders_of_every_kind_sharded_models_and_the_command(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(method="sensitivity-lora", measure={"examples": 50, "batch_size": 4, "estimator": "fisher"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    printed = launch(tmp_path)
    assert printed.count("50 examples") == 1  # the first process prints, the other does not
    one, two = score_recipe(recipe, tmp_path / "one.safetensors"), ImportanceScores.load(tmp_path / "two.safetensors")
    assert one.standard_errors is not None
    assert two.standard_errors is not None
    for name, values in one.scores.items():
        assert two.scores[name] == pytest.approx(values, rel=1e-6)
        assert two.standard_errors[name] == pytest.approx(one.standard_errors[name], rel=1e-6)
