"""Methods that score the frozen model: `lorank score`, `lorank train --plan`, and both inside of `lorank run`."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.conftest import tiny_config
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

import lorank
import lorank.errors
from lorank.cli import app
from lorank.errors import AllocationError, OutputError, PlanError, RecipeError, ScoresError
from lorank.findings import SeveralFindings
from lorank.plan import RankPlan
from lorank.recipe.files import make_recipe
from lorank.runs.run import run, run_plan
from lorank.runs.score_recipe import check_scores, score_recipe
from lorank.scores import ImportanceScores
from lorank.training.plan_stage import adapter_parameters

METHODS = ("sensitivity-lora", "gradient", "magnitude", "eva")


@pytest.mark.parametrize("method", [METHODS[0], *(pytest.param(one, marks=pytest.mark.long) for one in METHODS[1:])])
def test_a_run_scores_allocates_and_trains(method: str, tiny_recipe: Any, tmp_path: Path) -> None:
    measure = {} if method == "magnitude" else {"examples": 32, "batch_size": 8}  # it looks at no examples
    recipe = tiny_recipe(method=method, measure=measure, baselines=["lora"])
    result = run(recipe, tmp_path / "run")
    plan = result.plan
    assert plan.provenance["method"] == method
    assert plan.provenance["preset"] == ("per-output" if method == "sensitivity-lora" else "recommended")
    assert adapter_parameters(tmp_path / "run" / "adapter") == plan.spent <= plan.budget_parameters
    assert set(result.results) == {method, "lora"}
    if method == "sensitivity-lora":
        assert result.results[method]["calibration"]["examples"] == 32
        assert set(plan.provenance["stability"]) == {"halves", "bootstrap"}


def test_score_allocate_and_train_are_the_run(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="sensitivity-lora", measure={"examples": 32})
    whole = run(recipe, tmp_path / "run")
    scores = score_recipe(recipe, tmp_path / "scores.safetensors")
    plan = lorank.allocate(ImportanceScores.load(tmp_path / "scores.safetensors"), "r=1")
    assert plan.ranks == whole.plan.ranks
    plan.save(tmp_path / "plan.json")
    run_plan(recipe, RankPlan.load(tmp_path / "plan.json"), tmp_path / "parts")
    one, two = (load_file(tmp_path / part / "adapter" / "adapter_model.safetensors") for part in ("run", "parts"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert scores.provenance["calibration_set"]


def test_the_split_into_batches_changes_no_score(tiny_recipe: Any, tmp_path: Path) -> None:
    few, many = (
        score_recipe(
            tiny_recipe(method="sensitivity-lora", measure={"examples": 32, "batch_size": size}),
            tmp_path / f"{size}.safetensors",
        )
        for size in (5, 32)
    )
    for name, values in few.scores.items():
        assert float(values[0]) == pytest.approx(float(many.scores[name][0]), rel=1e-3)


def test_a_plan_is_trained_with_baselines_at_its_own_budget(tiny_recipe: Any, tmp_path: Path) -> None:
    scores = score_recipe(tiny_recipe(method="magnitude"), tmp_path / "scores.safetensors")
    plan = lorank.allocate(scores, "r=2")
    result = run_plan(tiny_recipe(baselines=["lora"]), plan, tmp_path / "run")
    spent = {method: found["adapter_parameters"] for method, found in result.results.items()}
    assert spent["magnitude"] == plan.spent
    assert spent["lora"] <= plan.budget_parameters
    assert spent["lora"] > plan.budget_parameters - max(plan.unit_costs.values())
    again = run_plan(tiny_recipe(baselines=["lora"]), plan, tmp_path / "run")
    assert again.results == result.results
    with pytest.raises(OutputError, match="belongs to another"):
        run_plan(tiny_recipe(baselines=["lora"]), lorank.allocate(scores, "r=2", max_rank=3), tmp_path / "run")


def test_the_baseline_eva_starts_at_principal_inputs(tiny_recipe: Any, tmp_path: Path) -> None:
    # Learning rate so small that nothing moves away from where it starts.
    recipe = tiny_recipe(method="lora", baselines=["eva"], train={"learning_rate": 1e-12, "max_steps": 2})
    run(recipe, tmp_path / "run")
    for folder, orthonormal in (("run", False), ("run/baselines/eva", True)):
        tensors = load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors")
        found = [a @ a.T for name, a in tensors.items() if "lora_A" in name]
        near = all(torch.allclose(product, torch.eye(len(product)), atol=1e-3) for product in found)
        assert near == orthonormal


class TestRefusals:
    def test_a_method_that_trains_while_it_scores(self, tiny_recipe: Any, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="i-lora does not score a frozen model"):
            score_recipe(tiny_recipe(), tmp_path / "scores.safetensors")

    def test_calibration_for_nobody(self, tiny_recipe: Any, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"measure\.examples: method i-lora has no such key"):
            run(tiny_recipe(measure={"examples": 8}), tmp_path / "run")

    def test_a_folder_in_place_of_a_file_is_seen_before_anything_is_scored(
        self, tiny_recipe: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(OutputError, match="is a folder; give the name of a file"):
            score_recipe(tiny_recipe(method="sensitivity-lora", model="nowhere"), tmp_path)

    def test_an_unknown_estimator(self, tiny_recipe: Any) -> None:
        with pytest.raises(RecipeError, match=r"measure\.estimator"):
            tiny_recipe(method="sensitivity-lora", measure={"estimator": "grams"})

    def test_layer_shares_for_scores_of_modules(self, tiny_recipe: Any, tmp_path: Path) -> None:
        with pytest.raises(lorank.LorankError, match="scope 'layer' cuts scores of units"):
            run(tiny_recipe(method="sensitivity-lora", ranks={"scope": "layer"}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("name", "cost", "message"),
        [
            (
                "bert.encoder.layer.9.output.dense",
                48,
                r"'bert\.encoder\.layer\.9\.output\.dense' is of d_in \+ d_out = 48 in the file and missing",
            ),
            ("bert.encoder.layer.1.output.dense", 99, r"= 99 in the file and of d_in \+ d_out = 48 in the model"),
        ],
    )
    def test_a_plan_for_another_model_names_the_first_difference(
        self, name: str, cost: int, message: str, tiny_recipe: Any, tmp_path: Path
    ) -> None:
        plan = RankPlan(
            {"bert.encoder.layer.0.output.dense": 1, name: 1},
            {"bert.encoder.layer.0.output.dense": 48, name: cost},
            "999",
            999,
        )
        with pytest.raises(PlanError, match=message):
            run_plan(tiny_recipe(), plan, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_scores_of_another_model_name_the_first_difference(
        self, tiny_folder: Path, tiny_recipe: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "scores.safetensors"
        scores = score_recipe(tiny_recipe(method="magnitude"), path)
        check_scores(path, str(tiny_folder))
        other = {name.replace("layer.1", "layer.7"): values for name, values in scores.scores.items()}
        costs = {name.replace("layer.1", "layer.7"): cost for name, cost in scores.unit_costs.items()}
        ImportanceScores(other, costs).save(path)
        with pytest.raises(ScoresError, match=r"layer\.7\.attention\.self\.query' is .* missing in the model"):
            check_scores(path, str(tiny_folder))

    def test_a_deeper_model_of_the_same_width_is_another_model(self, tiny_recipe: Any, tmp_path: Path) -> None:
        scores = score_recipe(tiny_recipe(method="magnitude"), tmp_path / "scores.safetensors")
        scores.check_model(BertForSequenceClassification(tiny_config()))
        deeper = BertForSequenceClassification(tiny_config(num_hidden_layers=3))
        first = r"'bert\.encoder\.layer\.2\.attention\.self\.query' is missing in the file and of d_in"
        with pytest.raises(ScoresError, match=first):
            scores.check_model(deeper)
        some = lorank.score(deeper, method="magnitude", targets=["query"])
        some.check_model(deeper)
        with pytest.raises(ScoresError, match=r"layer\.2\.attention\.self\.query' is of d_in"):
            some.check_model(BertForSequenceClassification(tiny_config()))
        wider = BertForSequenceClassification(tiny_config(num_hidden_layers=3, hidden_size=32))
        with pytest.raises(ScoresError, match=r"layer\.0\.attention\.self\.query' is of d_in \+ d_out = 32 .* = 64"):
            some.check_model(wider)


def test_the_scale_of_the_recipe_comes_along(tiny_recipe: Any, tmp_path: Path) -> None:
    scores = score_recipe(tiny_recipe(method="magnitude", scale=0.5), tmp_path / "scores.safetensors")
    assert lorank.allocate(scores, "r=1").scale == 0.5
    assert lorank.allocate(scores, "r=1", scale=3.0).scale == 3.0
    assert (
        lorank.allocate(lorank.score(BertForSequenceClassification(tiny_config()), method="magnitude"), "r=1").scale
        == 2.0
    )


@pytest.mark.long
def test_a_plan_of_eva_starts_at_as_many_directions_as_it_has_rank(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="eva", expert={"measure": {"components": 12}})
    plan = lorank.allocate(score_recipe(recipe, tmp_path / "scores.safetensors"), "r=6")
    other = tiny_recipe(
        method="eva", expert={"measure": {"components": 1}}, train={"learning_rate": 1e-12, "max_steps": 2}
    )
    run_plan(other, plan, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for a in (a for name, a in tensors.items() if "lora_A" in name):
        assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-2)


def recipe_file(folder: Path, tiny_recipe: Any, **changes: Any) -> Path:
    import yaml

    path = folder / "recipe.yaml"
    content = tiny_recipe(**changes).model_dump(mode="json", exclude={"resolved"})
    make_recipe(content)
    path.write_text(yaml.safe_dump(content))
    return path


class TestCommands:
    def test_score_allocate_train_and_load(self, tiny_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
        recipe, scores = recipe_file(tmp_path, tiny_recipe), tmp_path / "scores.safetensors"
        runner = CliRunner()
        said = runner.invoke(
            app,
            ["score", str(recipe), "measure.examples=16", "--method", "sensitivity-lora", "--output", str(scores)],
        )
        assert said.exit_code == 0, said.output
        assert "sensitivity-lora, 16 examples" in said.output
        budgets = ["--budget", "r=1,r=2", "--output", str(tmp_path / "plan.json")]
        said = runner.invoke(app, ["allocate", str(scores), *budgets, "--max-rank", "6", "--model", str(tiny_folder)])
        assert said.exit_code == 0, said.output
        assert "halves of the calibration set" in said.output
        plan = tmp_path / "plan-r-2.json"
        assert max(RankPlan.load(plan).ranks.values()) <= 6
        said = runner.invoke(app, ["train", str(recipe), "--plan", str(plan), "--output", str(tmp_path / "run")])
        assert said.exit_code == 0, said.output
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["method"] == "sensitivity-lora"
        assert (tmp_path / "run" / "ranks.png").exists()
        assert not (tmp_path / "run" / "scores.safetensors").exists()
        from transformers import AutoModelForSequenceClassification

        base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
        assert PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).active_adapter == "default"
        small = ["--budget", "r=1", "--data", str(recipe), "--output", str(tmp_path / "small")]
        said = runner.invoke(app, ["prune", str(tmp_path / "run" / "adapter"), *small])
        assert said.exit_code == 0, said.output
        assert re.search(r"adapter parameters\s+│", said.output)

    def test_another_method_than_the_recipes_is_scored_with(self, tiny_recipe: Any, tmp_path: Path) -> None:
        recipe = recipe_file(tmp_path, tiny_recipe, method="igu-lora", measure={"every": 2}, ranks={"scope": "layer"})
        output = str(tmp_path / "scores.safetensors")
        said = CliRunner().invoke(app, ["score", str(recipe), "--method", "magnitude", "--output", output])
        assert said.exit_code == 0, said.output

    def test_the_preset_is_chosen_recorded_and_shown(self, tiny_recipe: Any, tmp_path: Path) -> None:
        recipe = recipe_file(tmp_path, tiny_recipe, method="sensitivity-lora", measure={"examples": 16})
        recipe.write_text(recipe.read_text().replace("estimator: gram", ""))  # what a recipe says goes over a preset
        scores, plan = str(tmp_path / "scores.safetensors"), str(tmp_path / "plan.json")
        loss = "Hessian of the loss, by squared gradients for the labels of the data (empirical Fisher)"
        for command in (
            ["score", str(recipe), "--preset", "paper", "--output", scores],
            ["allocate", scores, "--budget", "r=1", "--output", plan],
            ["plan", "show", plan],
        ):
            said = CliRunner().invoke(app, command)
            assert said.exit_code == 0, said.output
            assert loss in " ".join(said.output.split())
        made = RankPlan.load(plan).provenance
        assert (made["preset"], made["estimator"], made["calibration"]["estimator"]) == ("paper", "fisher", "fisher")

    def test_files_of_scores_and_plans_are_overwritten_only_when_asked(
        self, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe, runner = recipe_file(tmp_path, tiny_recipe), CliRunner()
        monkeypatch.chdir(tmp_path)
        for arguments, file in (
            (["score", str(recipe), "--method", "magnitude"], Path("scores.safetensors")),
            (["allocate", "scores.safetensors", "--budget", "r=1"], Path("plan.json")),
        ):
            file.write_text("mine")
            said = runner.invoke(app, arguments)
            assert said.exit_code == 1
            assert f"{file} is there already; give another output, or --overwrite" in said.output
            assert file.read_text() == "mine"
            said = runner.invoke(app, [*arguments, "--overwrite"])
            assert said.exit_code == 0, said.output
        assert RankPlan.load("plan.json").budget == "r=1"

    def test_warnings_are_one_line(self, tiny_recipe: Any, tmp_path: Path) -> None:
        score_recipe(tiny_recipe(method="magnitude"), tmp_path / "scores.safetensors")
        arguments = [
            "allocate",
            str(tmp_path / "scores.safetensors"),
            "--budget",
            "r=4",
            "--output",
            str(tmp_path / "p.json"),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("default", lorank.errors.LorankWarning)
            said = CliRunner().invoke(app, [*arguments, "--max-rank", "1"])
        assert said.exit_code == 0, said.output
        (line,) = [line for line in said.output.splitlines() if line.startswith("warning: ")]
        assert line.startswith("warning: the budget r=4")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["score", "RECIPE"], "does not score a frozen model"),
            (["allocate", "none.safetensors", "--budget", "r=1"], "no such scores file"),
            (["train", "RECIPE", "--plan", "none.json"], "no such plan"),
            (["prune", "nowhere", "--budget", "r=1"], "adapter_config.json"),
            (["prune", "nowhere", "--budget", "r=1", "--by", "path"], "needs data with labels"),
            (["prune", "nowhere", "--budget", "r=1", "--by", "size"], "allowed: 'path', 'svd'"),
            (["prune", "nowhere", "--budget", "much"], "cannot be read"),
            (["allocate", "plan.json", "--budget", "r=1"], "a rank plan perhaps"),
            (["allocate", ".", "--budget", "r=1"], "is a folder"),
        ],
    )
    def test_errors_are_one_line_and_exit_code_1(
        self, arguments: list[str], message: str, tiny_recipe: Any, tmp_path: Path
    ) -> None:
        recipe = recipe_file(tmp_path, tiny_recipe)
        said = CliRunner().invoke(app, [str(recipe) if part == "RECIPE" else part for part in arguments])
        assert said.exit_code == 1
        assert message in said.output
        assert "Traceback" not in said.output


@pytest.mark.long
def test_groups_of_modules_have_budgets_of_their_own(tiny_recipe: Any, tmp_path: Path) -> None:
    mlp = r".*layer\.\d\.(intermediate|output)\.dense"
    budget = {"attention": "keep=50%", mlp: "beta=0.75"}
    recipe = tiny_recipe(
        budget=budget, train={"max_steps": 4}, triplets={"initial_rank": 4}, baselines=["magnitude", "lora"]
    )
    plan = run(recipe, tmp_path / "run").plan
    asked = {group: one["asked"] for group, one in plan.provenance["groups"].items()}
    assert asked == budget
    for name in ("magnitude", "lora"):  # each group gets the parameters that the plan spends on it
        own = RankPlan.load(tmp_path / "run" / "baselines" / name / "plan.json")
        for group, one in own.provenance["groups"].items():
            assert one["parameters"] == plan.provenance["groups"][group]["spent"] >= one["spent"]
    kept = {group: one["units_kept"] for group, one in plan.provenance["groups"].items()}
    assert plan.total_rank == sum(kept.values())
    assert kept["attention"] == 4 * plan.provenance["groups"]["attention"]["modules"] // 2
    assert f"group {mlp}" in (tmp_path / "run" / "report.html").read_text()
    again = run_plan(recipe, plan, tmp_path / "again").plan
    assert again == plan


def test_what_is_wrong_with_budgets_of_groups_is_said_at_once(tiny_recipe: Any, tmp_path: Path) -> None:
    budget = {"attention": "r=3", r".*layer\.\d\.(intermediate|output)\.dense": "2"}
    with pytest.raises(SeveralFindings) as caught:
        run(tiny_recipe(budget=budget, method="igu-lora"), tmp_path / "run")
    high, low = (str(error) for error in caught.value.errors if "group" in str(error))
    assert high.startswith("group 'attention': budget r=3 is ")
    assert "at most rank 2 in every module is on offer" in high
    assert "budget '2' is 2 parameters, below one unit of rank" in low
    with pytest.raises(AllocationError, match="is in no group of 'attention'"):
        run(tiny_recipe(budget={"attention": "r=1"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
