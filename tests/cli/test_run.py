import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lorank.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_run_prints_results_ranks_and_where_things_are(tiny_recipe, tmp_path: Path) -> None:
    content = tiny_recipe(baselines=["lora"]).model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    written = ("--output", str(tmp_path / "out"), "--json", tmp_path / "numbers.json")
    result = lorank("run", str(tmp_path / "recipe.yaml"), "seed=3", *written)
    assert result.exit_code == 0, result.output
    for expected in (
        "i-lora",
        "lora",
        "accuracy",
        "448",
        "query",
        "intermediate",
        str(tmp_path / "out" / "adapter"),
        "ranks.png",
    ):
        assert expected in result.output
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["seed"] == 3
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers) == {"folder", "results", "plan"}
    assert numbers["results"] == json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert numbers["plan"]["budget"]["spent"] <= 448
    again = lorank("run", str(tmp_path / "recipe.yaml"), "seed=3", *written[:2])
    assert "holds this run, finished: it is shown again, and nothing is trained" in again.output
