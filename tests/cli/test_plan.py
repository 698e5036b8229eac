from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import plan_for
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from lorank.allocation import allocate
from lorank.allocation.cut_history import CutHistory
from lorank.cli import app
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_plan_show_diff_and_export(bases: dict[str, Path], tmp_path: Path) -> None:
    plan = plan_for(AutoModelForCausalLM.from_pretrained(bases["decoder"]), str(bases["decoder"]))
    moved = {name: min(rank, 3) for name, rank in plan.ranks.items()}
    plan.save(tmp_path / "plan.json")
    RankPlan(moved, plan.unit_costs, "less", plan.budget_parameters).save(tmp_path / "less.json")
    shown = lorank("plan", "show", tmp_path / "plan.json")
    assert shown.exit_code == 0, shown.output
    assert "q_proj" in shown.output
    assert "by hand, budget here" in shown.output
    assert "lower third" in shown.output or "layer 0" in shown.output
    assert "% of parameters" in shown.output
    changed = sum(rank > 3 for rank in plan.ranks.values())
    difference = lorank("plan", "diff", tmp_path / "plan.json", tmp_path / "less.json")
    assert f"{changed} of {len(plan.ranks)} ranks differ" in difference.output
    assert difference.output.count("-1") >= changed
    snippet = lorank("plan", "export", tmp_path / "plan.json", "--to", "peft")
    assert snippet.stdout.startswith("from peft import LoraConfig")
    seeded = lorank("plan", "export", tmp_path / "plan.json", "--to", "llama-factory", "--output", tmp_path / "seed")
    assert seeded.exit_code == 0, seeded.output
    assert f"adapter_name_or_path: {tmp_path / 'seed'}" in seeded.stdout
    assert (tmp_path / "seed" / "adapter_model.safetensors").is_file()
    assert lorank("plan", "export", tmp_path / "plan.json", "--to", "nowhere").exit_code == 1


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Scores, the plan made from them, and the cut that left it."""
    values = {f"layer.{k}.query": np.array([3.0, 2.0, 1.0]) + k for k in (0, 1)}
    scores = ImportanceScores(values, dict.fromkeys(values, 32))
    scores.save(tmp_path / "scores.safetensors")
    plan = allocate(scores, "96")
    plan.save(tmp_path / "plan.json")
    history = CutHistory(dict.fromkeys(values, 3), dict.fromkeys(values, 32))
    history.add(8, plan.ranks, values)
    history.write(tmp_path / "cuts.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"),
    [("ranks.png", ()), ("ranks.svg", ("scores", "scores.safetensors")), ("c.svg", ("cuts", "cuts.jsonl"))],
)
def test_plan_show_draws_a_picture(name: str, options: tuple[str, ...], run_folder: Path) -> None:
    more = (f"--{options[0]}", run_folder / options[1]) if options else ()
    command = ("plan", "show", run_folder / "plan.json", "--picture", run_folder / name, *more)
    shown = lorank(*command)
    assert shown.exit_code == 0, shown.output
    assert str(run_folder / name) in shown.output
    drawn = (run_folder / name).read_bytes()
    assert drawn.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert (b"importance" in drawn) is ("scores" in options)
    assert lorank(*command).exit_code == 0  # the same picture again
    (run_folder / name).write_text("mine")
    refused = lorank(*command)
    assert refused.exit_code == 1
    assert "is there already" in refused.output
    assert (run_folder / name).read_text() == "mine"
    assert lorank(*command, "--overwrite").exit_code == 0
    assert (run_folder / name).read_bytes() == drawn


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--picture ranks.jpg --overwrite", "a picture ends with .png or .svg"),
        ("--picture plan.json --overwrite", "a picture ends with .png or .svg"),
        ("--scores scores.safetensors", "give --picture"),
        ("--picture r.png --scores scores.safetensors --cuts cuts.jsonl", "give one of --scores and --cuts"),
        ("--picture r.png --cuts other.jsonl", "did not leave the ranks of this plan"),
        ("--picture r.png --scores other.safetensors", "made from other scores"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(
    arguments: str, said: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder)
    names = ("layer.0.query", "layer.1.query")
    CutHistory(dict.fromkeys(names, 3), dict.fromkeys(names, 32)).write(Path("other.jsonl"))
    ImportanceScores({name: np.ones(3) for name in names}, dict.fromkeys(names, 32)).save("other.safetensors")
    Path("ranks.jpg").write_text("mine")
    plan = Path("plan.json").read_bytes()
    refused = lorank("plan", "show", "plan.json", *arguments.split())
    assert refused.exit_code == 1
    assert said in " ".join(refused.output.split())
    assert Path("ranks.jpg").read_text() == "mine"
    assert Path("plan.json").read_bytes() == plan
    assert not Path("r.png").exists()


def test_groups_of_modules_have_budgets_of_their_own(tmp_path: Path) -> None:
    values = {f"model.{tower}.layers.0.q": np.array([3.0, 2.0, 1.0]) for tower in ("vision", "text")}
    scores = ImportanceScores(values, dict.fromkeys(values, 32))
    scores.save(tmp_path / "scores.safetensors")
    groups = ("--group", "vision=r=1", "--group", "text=64")
    made = lorank("allocate", tmp_path / "scores.safetensors", *groups, "--output", tmp_path / "plan.json")
    assert made.exit_code == 0, made.output
    assert RankPlan.load(tmp_path / "plan.json") == allocate(scores, {"vision": "r=1", "text": "64"})
    shown = lorank("plan", "show", tmp_path / "plan.json")
    assert "budgets of groups" in shown.output
    assert "vision: r=1, text: 64: 96 of 96 parameters" in shown.output
    for wrong, said in (
        (("--group", "vision"), "group 'vision' has no budget"),
        ((*groups, "--group", "text=1"), "group 'text' is given twice"),
        ((*groups, "--budget", "r=1"), "--budget and --group are both given"),
        ((), "no budget is given"),
    ):
        refused = lorank("allocate", tmp_path / "scores.safetensors", *wrong)
        assert refused.exit_code == 1
        assert said in " ".join(refused.output.split())
