"""Recipes whose first stage decides the ranks, and the Trainer script of the examples, at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from lorank import ImportanceScores, LorankError, RankPlan
from lorank.errors import BudgetError, RecipeError
from lorank.runs.choices import chosen_by
from lorank.runs.run import run

QUIET = Console(quiet=True)
SMALL = {"budget": "r=1", "measure": {"every": 1}, "triplets": {"initial_rank": 3}}


@pytest.mark.parametrize(
    ("method", "factors"),
    [
        ("igu-lora", "kept"),
        pytest.param("igu-lora", "fresh", marks=pytest.mark.long),
        pytest.param("adalora", "kept", marks=pytest.mark.long),
        pytest.param("adalora", "fresh", marks=pytest.mark.long),
    ],
)
def test_a_recipe_run_ends_as_any_other(method: str, factors: str, tiny_recipe, tiny_folder, tmp_path: Path) -> None:
    recipe = tiny_recipe(**{**SMALL, "method": method, "start": {"factors": factors}, "baselines": ["lora"]})
    out = tmp_path / "out"
    result = run(recipe, out, QUIET)
    plan = RankPlan.load(out / "plan.json")
    assert plan.provenance["method"] == method
    assert plan.provenance["scores"] == ImportanceScores.load(out / "scores.safetensors").fingerprint
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for name, t in tensors.items() if ".lora_" in name) == plan.spent <= plan.budget_parameters
    assert not any("lambda" in name for name in tensors)
    metrics = json.loads((out / "metrics.json").read_text())["results"]
    assert set(metrics) == {method, "lora"}
    assert metrics[method]["steps"] == 10
    assert ("search" in metrics[method]) == (factors == "fresh")
    assert any((out / "search").glob("checkpoint-*")) == (factors == "fresh")
    assert any((out / "train").glob("checkpoint-*"))
    if factors == "fresh":
        assert metrics[method]["search"]["steps"] == 6  # the last cut, at 0.6 of 10
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
    PeftModel.from_pretrained(base, str(out / "adapter"))
    assert result.plan == plan
    # The same call again finds everything done.
    assert run(recipe, out, QUIET).results == result.results


def test_the_preset_fills_in_and_the_recipe_overrides(tiny_recipe) -> None:
    recipe = tiny_recipe(method="igu-lora", preset="official", cut={"begin": 0.3}, baselines=["adalora"])
    assert recipe.triplets.train_on_path
    assert recipe.start.factors == "fresh"
    assert recipe.cut.begin == 0.3
    # A baseline has its own default preset, not what the recipe says of its method.
    assert chosen_by(recipe.of("adalora")).preset == "paper"
    assert chosen_by(recipe.of("adalora")).choices.smooth.score == "product"
    assert chosen_by(recipe).choices.cut.model_dump() == recipe.cut.model_dump()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"cut": {"begn": 0.1}}, RecipeError, r"did you mean cut\.begin\?"),
        ({"cut": {"curve": "square"}}, RecipeError, "curve"),
        ({"preset": "loss-per-parameter"}, RecipeError, "preset 'loss-per-parameter' of igu-lora"),
        ({"preset": "paper", "ranks": {"max_rank": 2}}, RecipeError, "budget_in: parameters"),
        ({"budget": "r=5", "measure": {"every": 2}}, BudgetError, "at most rank 2"),
        (
            {"budget": "r=5"},
            RecipeError,
            r"2 things have to be mended:\n- budget .* at most rank 2.*\n- the last cut is",
        ),
        (
            {"budget": "r=2", "triplets": {"initial_rank": 4}, "train": {"max_steps": 1}},
            LorankError,
            "the last cut is at step 1 of 1",
        ),
    ],
)
def test_bad_recipes_are_refused(changes, error, said, tiny_recipe, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        run(tiny_recipe(method="igu-lora", **changes), tmp_path / "out", QUIET)
    assert not list(tmp_path.glob("out/*/checkpoint-*"))


@pytest.mark.long
def test_the_trainer_script_of_the_examples(tiny_folder: Path, tiny_data, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "rank_allocation.py"
    arguments = [str(tiny_folder), tiny_data["train"], str(tmp_path / "out"), "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    plan = RankPlan.load(tmp_path / "out" / "plan.json")
    assert f"{plan.spent:,} of {plan.budget_parameters:,} parameters" in done.stdout
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for name, t in tensors.items() if ".lora_" in name) == plan.spent
