"""Full fine-tuning among the baselines of a run: trained, counted, shown, continued, and the same as in a comparison."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import BertModel

from lorank.compare.cells import Cell, recipe_of
from lorank.compare.run_cell import run_cell
from lorank.errors import OutputError, RecipeError
from lorank.methods.method import Method
from lorank.methods.registry import register
from lorank.methods.uniform import UNIFORM
from lorank.report.tables import result_table
from lorank.runs.run import run
from lorank.training.trainer import StageTrainer

QUIET = Console(quiet=True)


@pytest.fixture
def recipe(tiny_recipe: Any, tiny_data: dict[str, str]) -> Any:
    """Uniform LoRA with full fine-tuning beside it, on a share of the data and two test parts."""
    parts = {"usual": tiny_data["test"], "again": tiny_data["test"]}
    return tiny_recipe(
        method="lora",
        baselines={"full": {"train": {"learning_rate": 3e-3}}},
        data={"test": parts, "sample": {"train": 0.5, "test": 0.5, "seed": 5}},
        train={"warmup": 4},
        metrics=["accuracy"],
        log_every=1,
    )


def test_a_run_with_full_fine_tuning(
    recipe: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(recipe, tmp_path / "out", QUIET)
    full, folder = result.results["full"], tmp_path / "out" / "baselines" / "full"
    weights = sum(parameter.numel() for parameter in BertModel.from_pretrained(tiny_folder).parameters())
    assert (full["trained_parameters"], full["steps"]) == (weights, 10)
    assert "adapter_parameters" not in full
    assert full["more"]["again"] == {"metrics": full["metrics"], "loss": pytest.approx(full["loss"])}
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["results"]["full"] == full
    rows = {"rows": 20, "of": 40}
    assert written["sample"] == {"seed": 5, "train": {"rows": 60, "of": 120}, "test": rows, "again": rows}
    # No model is left, and no checkpoint of every weight.
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "train"}
    assert not list(folder.rglob("*.safetensors"))
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert f"| full | {weights:,} (every weight of the base model) | {full['metrics']['accuracy']:.4f} | " in card
    assert "accuracy | again: accuracy |" in card
    assert "`data.sample`, seed 5): 60 of the 120 of train, 20 of the 40 of test, 20 of the 40 of again." in card
    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(result_table(result.results, 448))
    assert f"{weights:,}" in console.export_text()

    # Called again, it is read back; damaged, it is refused.
    monkeypatch.setattr(StageTrainer, "training_step", None)
    assert run(recipe, tmp_path / "out", QUIET).results == result.results
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(OutputError, match="remove it to train and evaluate again"):
        run(recipe, tmp_path / "out", QUIET)

    # Warm-up in steps: a straight line to the peak at step 4, and down to 0 at step 10.
    state = json.loads((tmp_path / "out" / "train" / "checkpoint-10" / "trainer_state.json").read_text())
    rates = {line["step"]: line["learning_rate"] for line in state["log_history"] if "loss" in line}
    before = {step: step - 1 for step in rates}  # the rate that a step was made with
    assert rates == pytest.approx({s: 1e-2 * (k / 4 if k < 4 else (10 - k) / 6) for s, k in before.items()})


@pytest.mark.long
def test_it_continues_and_is_what_a_comparison_trains(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = StageTrainer.training_step, []

    def killed(self: StageTrainer, *arguments: Any) -> Any:
        calls.append(self.stage)
        if calls.count("full fine-tuning") == 7:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(StageTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", QUIET)
    monkeypatch.setattr(
        StageTrainer, "training_step", lambda self, *more: (calls.append("continued"), step(self, *more))[1]
    )
    found = run(recipe, tmp_path / "out", QUIET).results["full"]
    assert calls.count("continued") == 10 - 4  # from the checkpoint at step 4

    content = recipe.model_dump(exclude_unset=True)
    cell = Cell("mood", "r=1", "full", recipe.seed)
    measured = run_cell(recipe_of(content, cell), cell, tmp_path / "cell", None, QUIET)
    assert (measured.metrics, measured.loss) == (found["metrics"], found["loss"])
    assert (measured.parameters, measured.steps) == (found["trained_parameters"], found["steps"])


def test_its_learning_rate_is_its_own(tiny_recipe: Any) -> None:
    assert tiny_recipe(baselines=["full"]).of("full").train.learning_rate == 5e-5
    given = tiny_recipe(baselines={"full": {"train": {"learning_rate": 2e-5}}})
    trained = given.of("full").train
    assert trained == given.train.model_copy(update={"learning_rate": 2e-5})
    # In comparisons too, and there an override comes last.
    content, cell = given.model_dump(exclude_unset=True), Cell("mood", "r=1", "full", 0)
    assert recipe_of(content, cell).train.learning_rate == 2e-5
    assert recipe_of(content, cell, {"train": {"learning_rate": 3e-5}}).train.learning_rate == 3e-5


def test_what_full_fine_tuning_cannot_have(tiny_recipe: Any) -> None:
    for changes, message in (
        (
            {"baselines": {"full": {"ranks": {"max_rank": 2}}}},
            r"baselines\.full\.ranks: full fine-tuning trains every weight",
        ),
        ({"baselines": {"full": {"train": {"epoch": 2}}}}, r"baselines\.full\.train\.epoch: unknown key"),
        ({"baselines": ["ful"]}, r"'ful' is unknown \(did you mean full\?\)"),
        (
            {"baselines": {"full": {"train": {"warmup": 1.5}}}},
            r"baselines\.full\.train\.warmup: .*less than 1 \(got 1\.5\)",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            tiny_recipe(**changes)
    content = {**tiny_recipe().model_dump(exclude_unset=True), "baselines": {"full": {"preset": "paper"}}}
    with pytest.raises(RecipeError, match="preset: full fine-tuning trains every weight"):
        recipe_of(content, Cell("mood", "r=1", "full", 0))
    with pytest.raises(RecipeError, match="the name of full fine-tuning"):
        register(Method("full", "ours", UNIFORM.presets, "paper"))


def test_a_warm_up_as_long_as_its_stage_is_refused(tiny_recipe: Any, tmp_path: Path) -> None:
    for changes, message in (
        ({"train": {"warmup": 10}}, r"train\.warmup is 10 steps, the whole stage has 10"),
        ({"method": "igu-lora", "train": {"warmup": 12}}, r"train\.warmup is 12 steps, the whole stage has 10"),
        (
            {"method": "i-lora", "search": {"max_steps": 5}, "train": {"warmup": 6}},
            r"search\.warmup is 6 steps, .* has 5",
        ),
        (
            {"method": "lora", "baselines": {"full": {"train": {"max_steps": 3}}}, "train": {"warmup": 4}},
            r"baselines\.full\.train\.warmup is 4 steps, the whole stage has 3",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            run(tiny_recipe(**changes), tmp_path / "out", QUIET)
        assert not (tmp_path / "out").exists()
