"""`--json`: standard output is one JSON document and nothing else, with keys that stay."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from lorank.cli import app
from lorank.scores import ImportanceScores

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PLAN = {
    "format",
    "version",
    "budget",
    "total_rank",
    "scale",
    "alpha",
    "modules",
    "provenance",
    "by_layer",
    "by_projection",
}


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: Any, code: int = 0) -> Any:
    """What a command prints with `--json -`; the same as what it writes into a file, and what it says is on standard error."""
    result = lorank(*arguments, "--json", "-")
    assert result.exit_code == code, result.output
    assert result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {f"layer.{k}.query": np.array([3.0, 2.0, 1.0]) + k for k in (0, 1)}
    ImportanceScores(values, dict.fromkeys(values, 32)).save(tmp_path / "s.safetensors")
    return tmp_path


def test_plans(folder: Path) -> None:
    command = ("allocate", folder / "s.safetensors", "--budget", "96,160", "--output", folder / "plan.json")
    plans = document(*command)["plans"]
    assert [set(plan) for plan in plans] == [PLAN | {"file"}] * 2
    assert [plan["budget"]["spent"] for plan in plans] == [96, 160]
    one, two = (Path(plan["file"]) for plan in plans)
    shown = document("plan", "show", one)
    assert shown == plans[0]
    assert shown["modules"] == json.loads(one.read_text())["modules"]
    assert {key for group in shown["by_layer"] for key in group} == {"name", "modules", "mean_rank", "share"}
    changed = document("plan", "diff", one, two)
    assert set(changed) == {"moved_share", "changed_modules", "spent_difference", "first", "second", "modules"}
    assert changed["spent_difference"] == 64
    assert changed["modules"]["layer.1.query"]["first"] == shown["modules"]["layer.1.query"]["rank"]
    same = lorank("plan", "show", one, "--json", folder / "written.json")
    assert json.loads((folder / "written.json").read_text()) == shown
    assert "mean rank" in same.stdout
    assert str(folder / "written.json") in same.stdout


def test_what_fails_leaves_standard_output_empty(folder: Path) -> None:
    failed = lorank("plan", "show", folder / "none.json", "--json", "-")
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "no such plan" in failed.stderr
    refused = lorank("plan", "show", folder / "none.json", "--json", folder)
    assert "is a folder; give the name of a file" in refused.stderr


def test_verify(trained: Any, bases: Any) -> None:
    found = document("verify", trained("decoder"), "--engine", "sglang", code=1)
    assert set(found) == {"adapter", "against", "unread_base", "verdicts"}
    keys = {"engine", "label", "answer", "why", "error", "worst", "settings", "right"}
    assert {key for verdict in found["verdicts"] for key in verdict} == keys
    (sglang,) = (verdict for verdict in found["verdicts"] if verdict["engine"] == "sglang")
    assert sglang["right"] is False


def test_score(tiny_recipe: Any, tmp_path: Path) -> None:
    content = tiny_recipe(method="lora", preset=None).model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    command = ("score", tmp_path / "recipe.yaml", "--method", "magnitude", "--output", tmp_path / "s.safetensors")
    found = document(*command)
    assert set(found) == {"file", "modules", "provenance"}
    assert sum(module["share"] for module in found["modules"].values()) == pytest.approx(1)


def test_methods_and_a_model(tiny_folder: Path) -> None:
    names = [method["name"] for method in document("methods")["methods"]]
    assert {"lora", "i-lora", "eva"} <= set(names)
    found = document("inspect", tiny_folder)
    assert set(found) == {"model", "model_class", "base_parameters_count", "targets"}
    assert {"name", "d_in", "d_out", "unit_cost"} == set(found["targets"][0])


@pytest.mark.long
def test_grids_and_a_pruned_adapter(tiny_recipe: Any, tmp_path: Path) -> None:
    content = tiny_recipe(method="lora", preset=None).model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = tmp_path / "recipe.yaml"
    grid = (recipe, "train.max_steps=2", "--seeds", 2, "--output")
    compared = document("compare", *grid, tmp_path / "compare", "--methods", "lora,magnitude")
    assert compared == json.loads((tmp_path / "compare" / "comparison.json").read_text())
    assert {row["method"] for row in compared["rows"]} == {"lora", "magnitude"}
    swept = document("sweep", *grid, tmp_path / "sweep", "--over", "scale=1,2")
    assert swept == json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    ran = document("run", recipe, "train.max_steps=2", "--output", tmp_path / "run")
    adapter = Path(ran["folder"]) / "adapter"
    pruned = document("prune", adapter, "--budget", "half", "--output", tmp_path / "half")
    assert pruned["after"]["adapter_parameters"] == pruned["plan"]["budget"]["spent"]
    both = document("prune", adapter, "--budget", "half,keep=50%", "--output", tmp_path / "both")
    assert set(both) == {"folder", "before", "after"}
    served = document("export", adapter, tmp_path / "served")
    assert {"folder", "verdicts", "parameters", "rank"} <= set(served)


def test_an_output_of_the_command_is_not_overwritten_by_its_numbers(folder: Path) -> None:
    plan = folder / "plan.json"
    result = lorank("allocate", folder / "s.safetensors", "--budget", "96", "--output", plan, "--json", plan)
    assert result.exit_code == 1
    assert "plan.json is an output of this command already" in result.output.replace("\n", " ")
    assert json.loads(plan.read_text())["format"] == "lorank.rank_plan"
