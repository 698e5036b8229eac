"""A real grid of tiny cells: equal, repeatable, resumable; a killed and a failed cell are not lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import tiny_writer

from lorank.compare.answer import answer
from lorank.compare.cells import CONTROLS, ERROR, FROM_PLAN, RESULT, Cell, recipe_of
from lorank.compare.compare import DEFAULT, compare_recipes, read_grid, with_equal_compute
from lorank.compare.example_pairs import read_cell_losses
from lorank.compare.grid import Grid
from lorank.compare.grid_checks import check_grid, left_out_budgets
from lorank.compare.learning_rate import rates_in_words, searched
from lorank.compare.run_cell import main
from lorank.compare.run_grid import run_grid
from lorank.errors import AllocationError, ComparisonError, DataError, OutputError, RecipeError
from lorank.methods import METHODS
from lorank.plan import RankPlan

CELLS = Path("cells") / "mood" / "r=1"


@pytest.fixture
def recipe_file(tiny_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    recipe = tiny_recipe(train={"max_steps": 12})
    content = {
        "model": recipe.model.name, "budget": "r=1", "data": {**recipe.data.model_dump(include={"train", "test", "max_length"})},
        "metrics": ["accuracy", "matthews"], "checkpoint_every": 4, "preset": "paper",
        "triplets": {"initial_rank": 2}, "search": {"max_steps": 3}, "measure": {"scoring_batch_size": 8},
        "train": {"max_steps": 12, "batch_size": 8, "learning_rate": 1e-2},
        "baselines": {name: {"measure": {"examples": 32}} for name in ("sensitivity-lora", "eva")},
    }  # fmt: skip
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def in_this_process(folder: Path) -> int:
    return main(folder)


def never(folder: Path) -> int:
    raise AssertionError(f"{folder} is done")


METHOD_NAMES = ("lora", "i-lora", "igu-lora", "sensitivity-lora", "shuffled", "equal-compute", "svd-truncate", "full")


def grid(
    recipe: Path, folder: Path, methods: tuple[str, ...] = METHOD_NAMES, seeds: tuple[int, ...] = (0,), *more: str
) -> Grid:
    overrides = ["igu-lora:measure.every=2", "full:train.learning_rate=1e-3", *more]
    return read_grid(
        [recipe], [o for o in overrides if o.partition(":")[0] in (*methods, "mood")], methods, seeds, None, folder
    )


@pytest.mark.long
def test_a_share_of_the_units_is_what_the_plan_of_the_recipes_method_spends(recipe_file: Path, tmp_path: Path) -> None:
    """Two modules of each layer have twice the cost of the others, so half of the units can cost more or less than half."""
    methods = ("lora", "i-lora", "shuffled")
    asked = grid(recipe_file, tmp_path / "grid", methods, (0,), "mood:budget=keep=50%")
    cells = {cell.method: cell for cell in asked.cells()}
    assert asked.recipe(cells["i-lora"]).budget == "keep=50%"
    assert {asked.needed(cell) for name, cell in cells.items() if name != "i-lora"} == {cells["i-lora"]}
    results = {cell.method: one for cell, one in run_grid(asked, launch=in_this_process).items()}
    plan = RankPlan.load(asked.plan_of(cells["i-lora"]))
    assert (plan.total_rank, plan.budget_units) == (12, 12)
    assert results["i-lora"].parameters == plan.spent == asked.parameters(cells["lora"])
    assert {asked.recipe(cells[name]).budget for name in methods if name != "i-lora"} == {str(plan.spent)}
    assert all(plan.spent - 48 < one.parameters <= plan.spent for one in results.values())
    assert run_grid(asked, launch=never) == run_grid(
        grid(recipe_file, tmp_path / "grid", methods, (0,), "mood:budget=keep=50%")
    )
    # Without that method there is no plan to follow: what so many units cost at the mean.
    without = grid(recipe_file, tmp_path / "other", ("lora", "adalora"), (0,), "mood:budget=keep=50%")
    assert {without.recipe(cell).budget for cell in without.cells()} == {"448"}


def test_cells_say_so_where_the_plan_that_decides_their_parameters_was_not_made(
    recipe_file: Path, tmp_path: Path
) -> None:
    asked = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora"), (0,), "mood:budget=keep=50%")
    assert run_grid(asked, tries=1, launch=lambda folder: 1) == {}
    assert "made no plan, whose parameters this cell is to have" in asked.errors()[asked.cells()[0]]


def test_unit_costs_of_one_method_are_no_budget_of_a_comparison(recipe_file: Path, tmp_path: Path) -> None:
    asked = grid(
        recipe_file, tmp_path / "grid", ("lora", "igu-lora"), (0,), "mood:budget=rank=5", "igu-lora:preset=official"
    )
    with pytest.raises(ComparisonError, match=r"rank=5 is a sum of the unit costs of igu-lora \(official\)"):
        check_grid(asked)


def test_a_budget_of_a_baseline_is_left_out_and_said(recipe_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe_file.read_text())
    content["baselines"] = {"lora": {"budget": "r=2"}, "eva": None}
    recipe_file.write_text(yaml.safe_dump(content))
    asked = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora"))
    assert asked.recipe(asked.cells()[0]).budget == "448"
    assert left_out_budgets(asked) == ["mood: every method gets the same parameters; left out: budget r=2 of lora"]


@pytest.mark.long
def test_every_kind_of_cell_is_equal_where_it_has_to_be(recipe_file: Path, tmp_path: Path) -> None:
    asked = grid(recipe_file, tmp_path / "grid")
    results = run_grid(asked, launch=in_this_process)
    assert set(results) == set(asked.cells())
    shorter = next(one for cell, one in results.items() if cell.method == "equal-compute")
    assert (shorter.steps, shorter.steps + shorter.steps_before) == (4, 12)
    whole = [one for one in results.values() if one is not shorter]
    assert len({one.tokens for one in whole}) == len({one.steps for one in whole}) == 1
    adapters = {cell.method: one for cell, one in results.items() if cell.method != "full"}
    assert {one.scale for one in adapters.values()} == {2.0}
    assert all(448 - 48 < one.parameters <= 448 for one in adapters.values())
    # Every kind keeps the losses of the test examples; their mean is what it reports.
    losses = read_cell_losses(asked.cells(), asked.folder)
    assert {cell: one.mean() for cell, one in losses.items()} == pytest.approx(
        {cell: one.loss for cell, one in results.items()}, rel=1e-5
    )
    full = next(one for cell, one in results.items() if cell.method == "full")
    assert full.parameters > 5000
    assert adapters["i-lora"].steps_before > 0
    assert all(one.peak_bytes > 1e6 for one in results.values())
    plans = {
        name: RankPlan.load(tmp_path / "grid" / CELLS / name / "seed-0" / "run" / "plan.json")
        for name in ("i-lora", "shuffled")
    }
    assert adapters["equal-compute"].parameters == adapters["i-lora"].parameters
    assert plans["shuffled"].spent == plans["i-lora"].spent
    assert sorted(plans["shuffled"].ranks.values()) == sorted(plans["i-lora"].ranks.values())
    assert plans["shuffled"].ranks != plans["i-lora"].ranks


@pytest.mark.long
def test_a_grid_run_twice_gives_the_same_numbers_and_a_finished_one_runs_nothing(
    recipe_file: Path, tmp_path: Path
) -> None:
    methods = ("lora", "i-lora", "full")
    first = run_grid(grid(recipe_file, tmp_path / "one", methods), launch=in_this_process)
    second = run_grid(grid(recipe_file, tmp_path / "two", methods), launch=in_this_process)
    for cell, one in first.items():
        assert (one.metrics, one.loss) == (second[cell].metrics, second[cell].loss)
    assert run_grid(grid(recipe_file, tmp_path / "one", methods), launch=never) == first


@pytest.mark.long
def test_cells_killed_at_any_moment_are_continued_to_the_same_numbers(recipe_file: Path, tmp_path: Path) -> None:
    methods = ("lora", "i-lora")
    wanted = run_grid(grid(recipe_file, tmp_path / "one", methods), launch=in_this_process)
    killed = []

    def launch(folder: Path) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "lorank.compare.run_cell", str(folder)], stdout=subprocess.DEVNULL
        )
        if folder not in killed:
            killed.append(folder)
            threading.Thread(target=kill_in_training, args=(process, folder), daemon=True).start()
        return process.wait()

    found = run_grid(grid(recipe_file, tmp_path / "two", methods), tries=3, launch=launch)
    assert len(killed) == 2
    assert {c: (m.metrics, m.loss) for c, m in found.items()} == {c: (m.metrics, m.loss) for c, m in wanted.items()}


def kill_in_training(process: Any, folder: Path) -> None:
    """SIGKILL once a checkpoint is there."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if any(folder.rglob("checkpoint-*")):
            os.kill(process.pid, signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.long
def test_a_failed_cell_is_tried_again_then_said_and_left_out(recipe_file: Path, tmp_path: Path) -> None:
    calls: list[Path] = []

    def launch(folder: Path) -> int:
        calls.append(folder)
        return 9 if "i-lora" in str(folder) else main(folder)

    asked = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora", "shuffled"))
    with (tmp_path / "log").open("w") as log:
        results = run_grid(asked, launch=launch, console=Console(file=log, width=200))
    assert [cell.method for cell in results] == ["lora"]
    assert sum("i-lora" in str(folder) for folder in calls) == 2
    reasons = {cell.method: reason for cell, reason in asked.errors().items()}
    assert "ended with 9, see" in reasons["i-lora"]
    assert "the plan has to be made first" in reasons["shuffled"]
    assert "once more" in (tmp_path / "log").read_text()
    # The same grid again does what is left.
    assert len(run_grid(asked, launch=in_this_process)) == 3
    assert not asked.errors()


@pytest.mark.long
def test_learning_rates_are_searched_on_training_data_alone(recipe_file: Path, tmp_path: Path) -> None:
    methods = ("lora", "igu-lora", "full", "uniform-triplets")
    asked = grid(recipe_file, tmp_path / "grid", methods, (0,), "mood:method=igu-lora")
    found = searched(asked, (1e-6, 1.0), launch=in_this_process)
    # Factors are of each method's own rate.
    rates = {method: rate for (_, _, method), rate in found.rates.items()}
    for method, own in (("lora", 1e-2), ("igu-lora", 1e-2), ("full", 1e-3)):
        assert rates[method] in (own, 1e-6 * own)
    held = [
        next((tmp_path / "grid" / "search" / "data").glob(f"mood-{part}-*.jsonl")).read_text().splitlines()
        for part in ("train", "judged")
    ]
    assert len(held[0]) + len(held[1]) == 120
    texts = [{json.loads(line)["text_1"] for line in part} for part in held]
    assert not texts[0] & texts[1]
    recipe = found.recipe(Cell("mood", "r=1", "igu-lora", 0))
    assert recipe.train.learning_rate == rates["igu-lora"] == rates["uniform-triplets"]
    record = json.loads((tmp_path / "grid" / "search.json").read_text())
    assert [len(one["tried"]) for one in record["found"]] == [2, 2, 2]
    # The metric that is judged by is measured alone: others may cost a text for each row.
    measured = json.loads(next((tmp_path / "grid" / "search").rglob(RESULT)).read_text())
    assert list(measured["metrics"]) == ["accuracy"]
    said = Console(file=(tmp_path / "said").open("w"), width=500)
    searched(asked, (1e-6, 1.0), launch=never, console=said)
    assert "learning rates that were searched for: mood, lora " in (tmp_path / "said").read_text()
    # The same question is not asked again, also where an answer was missing; another one is.
    assert searched(asked, (1e-6, 1.0), launch=never).rates == found.rates
    with pytest.raises(ComparisonError, match="lora: no learning rate of the search gave a result"):
        searched(asked, (0.5, 2.0), launch=never)
    with pytest.raises(ComparisonError, match="factors are"):
        searched(asked, (0.0,))
    # Other data are another question, and cells that saw other rows do not answer it.
    lines = (path := Path(yaml.safe_load(recipe_file.read_text())["data"]["train"])).read_text().splitlines()
    path.write_text("\n".join([*lines[:1], *lines[20:], ""]))
    with pytest.raises(OutputError, match="was run by another recipe"):
        searched(asked, (1e-6, 1.0), launch=never)


def test_factors_of_a_rate_are_tried_side_by_side(recipe_file: Path, tmp_path: Path) -> None:
    both, met = threading.Barrier(2, timeout=60), list[str]()

    def launch(folder: Path) -> int:
        both.wait()
        met.append(folder.parts[-4])
        return 9

    with pytest.raises(ComparisonError, match="lora: no learning rate of the search gave a result"):
        searched(grid(recipe_file, tmp_path / "grid", ("lora",), (0,)), (0.3, 1.0), processes=2, tries=1, launch=launch)
    assert sorted(met) == ["times-0.3", "times-1.0"]


def test_what_a_comparison_leaves(recipe_file: Path, tmp_path: Path) -> None:
    asked = grid(recipe_file, tmp_path / "grid", ("lora", "sensitivity-lora"), (0, 1))
    run_grid(replace(asked, seeds=(0,)), launch=in_this_process)
    with (tmp_path / "log").open("w") as log:
        found = compare_recipes(asked, within=0.5, launch=in_this_process, console=Console(file=log, width=200))
    assert not found.failed
    told = (tmp_path / "log").read_text().splitlines()
    assert told[0].startswith("warning: with 2 seeds and 1 comparison a difference is probably shown")
    assert told[1].startswith("2 of 4 cells are done, 2 are left: about 24 training steps; about ")
    assert told[2].startswith("done    mood/r=1/lora/seed-1  (about ")
    assert told[3] == "done    mood/r=1/sensitivity-lora/seed-1  (nothing left)"
    content = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert len(content["cells"]) == 4
    assert content["grid"]["seeds"] == [0, 1]
    assert "sensitivity-lora" in (tmp_path / "grid" / "table.md").read_text()
    assert "sensitivity-lora" in found.sentences[1]
    assert "test losses" in found.sentences[2]
    assert "sensitivity-lora" in found.sentences[2]
    assert content["rows"][1]["losses"]["examples"] == 40
    assert content["equal_within"] == content["rows"][1]["difference"]["within"] == 0.5
    for name in ("table.tex", "table.csv", "forest.png", "pareto.png"):
        assert (tmp_path / "grid" / name).stat().st_size > 100


def test_what_a_launcher_raises_is_a_failed_try(recipe_file: Path, tmp_path: Path) -> None:
    def lost(folder: Path) -> int:
        raise ConnectionError("the node is gone")

    asked = grid(recipe_file, tmp_path / "grid", ("lora",))
    assert run_grid(asked, launch=lost) == {}
    assert list(asked.errors().values()) == ["ConnectionError: the node is gone"]


def test_equal_compute_is_among_the_defaults_where_it_can_be(recipe_file: Path, tmp_path: Path) -> None:
    def methods(*overrides: str) -> tuple[str, ...]:
        with (tmp_path / "said.txt").open("w") as said:
            grid = read_grid([recipe_file], overrides, None, (0,), None, tmp_path / "grid")
            return with_equal_compute(grid, Console(file=said, width=200)).methods

    assert methods() == (*DEFAULT, "equal-compute")
    assert methods("method=igu-lora") == DEFAULT
    assert methods("method=magnitude") == (*DEFAULT, "magnitude")
    assert methods("search.max_steps=9") == DEFAULT
    assert "mood: equal-compute: search and scoring cost at least as much as 22" in (tmp_path / "said.txt").read_text()


def test_no_cell_waits_for_one_that_it_does_not_need(recipe_file: Path, tmp_path: Path) -> None:
    begun, first, reached = [], threading.Event(), threading.Event()

    def launch(folder: Path) -> int:
        cell = "/".join(folder.parts[-2:])
        assert cell == "lora/seed-0" or first.wait(60)
        begun.append(cell)
        first.set()
        if cell == "lora/seed-1":
            reached.set()
        return 0 if cell != "lora/seed-0" or reached.wait(60) else 1

    asked = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora", "shuffled"), (0, 1))
    run_grid(asked, launch=launch, processes=2, tries=1)
    # In order, each control after its plan, and the next seed begins while a cell of the first one is still running.
    assert reached.is_set()
    assert begun[:4] == ["lora/seed-0", "i-lora/seed-0", "shuffled/seed-0", "lora/seed-1"]
    assert begun.index("shuffled/seed-1") > begun.index("i-lora/seed-1")
    assert len(begun) == 6


@pytest.mark.long
def test_controls_of_a_method_whose_second_stage_is_skipped(recipe_file: Path, tmp_path: Path) -> None:
    skip = ("i-lora:start.factors=kept", "i-lora:expert.measure.source=training")
    asked = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora", "shuffled"), (0,), *skip)
    assert asked.recipe(Cell("mood", "r=1", "i-lora", 0)).keeps_triplets
    assert not asked.recipe(Cell("mood", "r=1", "shuffled", 0)).keeps_triplets
    results = run_grid(asked, launch=in_this_process)
    assert {cell.method: one.steps for cell, one in results.items()} == {"lora": 12, "i-lora": 12, "shuffled": 12}
    with pytest.raises(ComparisonError, match="for methods of two stages, i-lora of mood has one"):
        check_grid(grid(recipe_file, tmp_path / "other", ("lora", "i-lora", "equal-compute"), (0,), *skip))


@pytest.mark.long
def test_triplets_that_end_at_the_uniform_rank(recipe_file: Path, tmp_path: Path) -> None:
    methods = ("lora", "igu-lora", "uniform-triplets")
    asked = grid(recipe_file, tmp_path / "grid", methods, (0,), "mood:method=igu-lora")
    theirs, mine = (asked.recipe(Cell("mood", "r=1", name, 0)) for name in methods[1:])
    limits = {"min_rank": 1, "max_rank": 1}
    assert mine == theirs.model_copy(update={"ranks": theirs.ranks.model_copy(update=limits)})
    assert theirs.choices().measure.every == 2
    assert theirs.ranks.max_rank is None
    results = run_grid(asked, launch=in_this_process)
    plan = RankPlan.load(tmp_path / "grid" / CELLS / "uniform-triplets" / "seed-0" / "run" / "plan.json")
    assert set(plan.ranks.values()) == {1}
    # A plan made in training is shuffled for a fresh LoRA: that is another training too, and no test of the plan.
    assert asked.controlled() == {("mood", "svd-truncate"): "igu-lora", ("mood", "uniform-triplets"): "igu-lora"}
    assert results[Cell("mood", "r=1", "uniform-triplets", 0)].parameters == 448
    # Where the recipe's method allocates before the training, AdaLoRA's training is what is looked at.
    asked = grid(recipe_file, tmp_path / "other", ("lora", "adalora", "uniform-triplets"), (0,), "mood:budget=700")
    recipe = asked.recipe(Cell("mood", "700", "uniform-triplets", 0))
    assert (recipe.method, recipe.ranks.min_rank, recipe.ranks.max_rank) == ("adalora", 1, 2)


@pytest.mark.long
def test_a_control_of_a_plan_that_has_changed_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    asked = grid(recipe_file, tmp_path / "grid", ("lora", "eva", "shuffled"), (0,), "mood:method=eva")
    run_grid(asked, launch=in_this_process)
    shuffled, eva = (tmp_path / "grid" / CELLS / name / "seed-0" / "run" for name in ("shuffled", "eva"))
    # A shuffled plan of EVA's starts as EVA does: at directions of the inputs, the best first.
    spans = {}
    for folder in (shuffled, eva):
        tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
        spans[folder] = {key: value for key, value in tensors.items() if "lora_A" in key}
    both = [key for key in spans[shuffled] if key in spans[eva]]
    assert both
    for key in both:
        first, other = spans[shuffled][key][0], spans[eva][key][0]
        assert abs(float(first @ other / (first.norm() * other.norm()))) > 0.9
    plan = RankPlan.load(eva / "plan.json")
    replace(plan, scale=3.0).save(eva / "plan.json")
    with pytest.raises(OutputError, match="trained another plan than"):
        asked.results()


def test_metrics_are_looked_at_first(recipe_file: Path, tmp_path: Path) -> None:
    asked = grid(recipe_file, tmp_path / "grid", ("lora",))
    with pytest.raises(ComparisonError, match="metric 'f1' is none of mood's; allowed: accuracy, matthews"):
        compare_recipes(asked, metrics={"mood": "f1"})
    assert not (tmp_path / "grid" / "cells").exists()


@pytest.mark.cluster
def test_a_grid_on_ray_gives_the_same_numbers(recipe_file: Path, tmp_path: Path) -> None:
    from lorank.compare.ray_cluster import on_ray

    methods = ("lora", "i-lora")
    wanted = run_grid(grid(recipe_file, tmp_path / "one", methods), launch=in_this_process)
    found = run_grid(grid(recipe_file, tmp_path / "two", methods), processes=2, launch=on_ray(2))
    assert {c: (m.metrics, m.loss) for c, m in found.items()} == {c: (m.metrics, m.loss) for c, m in wanted.items()}


def test_another_recipe_in_the_same_folder_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    run_grid(grid(recipe_file, tmp_path / "grid", ("lora",)), launch=in_this_process)
    other = grid(recipe_file, tmp_path / "grid", ("lora",), (0,), "lora:train.learning_rate=2e-2")
    with pytest.raises(OutputError, match="was run by another recipe"):
        run_grid(other, launch=in_this_process)
    result = tmp_path / "grid" / CELLS / "lora" / "seed-0" / RESULT
    result.write_text("{}")
    with pytest.raises(ComparisonError, match="damaged"):
        run_grid(grid(recipe_file, tmp_path / "grid", ("lora",)), launch=in_this_process)


def test_recipes_of_cells(recipe_file: Path, tmp_path: Path) -> None:
    content = {**yaml.safe_load(recipe_file.read_text()), "method": "i-lora", "ranks": {"max_rank": 2}}
    for method in (*METHODS, *CONTROLS):
        recipe = recipe_of(content, Cell("mood", "r=1", method, 3), parameters=448)
        assert (recipe.seed, recipe.budget, recipe.baselines) == (3, "448", {})
        # Limits are for the recipe's own method.
        assert (recipe.ranks.max_rank == 2) == (method in ("i-lora", *FROM_PLAN))
    assert recipe_of(content, Cell("mood", "r=1", "adalora", 0)).choices().cut.budget_in == "parameters"
    assert recipe_of(content, Cell("mood", "r=1", "full", 0)).train.learning_rate == 5e-5
    own = grid(recipe_file, tmp_path / "grid", ("lora", "i-lora", "shuffled"), (0,), "i-lora:train.learning_rate=0.5")
    assert own.recipe(Cell("mood", "r=1", "shuffled", 0)).train.learning_rate == 0.5
    assert recipe_of({**content, "train": {"max_steps": 7}}, Cell("mood", "r=1", "igu-lora", 0)).train.max_steps == 7


def test_refusals_come_first(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    for overrides, methods, error, message in (
        ([], ("eva",), ComparisonError, "add lora to the methods"),
        ([], ("lora", "evaa"), ComparisonError, r"'evaa' is unknown \(did you mean eva\?\)"),
        (["eva:train.epochs=1"], ("lora",), ComparisonError, "'eva' has choices of its own"),
        (["mod:train.epochs=1"], ("lora",), ComparisonError, r"did you mean mood\?"),
        (["mood:train.epoch=1"], ("lora",), RecipeError, "train.epoch: unknown key"),
        (
            ["i-lora:train.batch_size=4"],
            ("lora", "i-lora"),
            ComparisonError,
            r"train.batch_size of i-lora on mood is 4, of",
        ),
        (["lora:seed=3"], ("lora",), ComparisonError, "lora:seed would make this method's cells unequal"),
        ([], ("lora", "shuffled"), ComparisonError, "add i-lora to the methods"),
        ([], ("lora", "uniform-triplets"), ComparisonError, "a control of adalora on mood; add adalora"),
        (
            ["mood:search.max_steps=9"],
            ("lora", "i-lora", "equal-compute"),
            ComparisonError,
            "at least as much as 22 steps",
        ),
        (["mood:method=eva"], ("lora", "eva", "equal-compute"), ComparisonError, "for methods of two stages, eva"),
        (["mood:budget=r=2"], ("lora", "svd-truncate"), ComparisonError, "no larger than budget r=2"),
        (["mood:start.scale_by=active"], ("lora",), ComparisonError, "scale_by must be initial"),
        (["lora:train"], ("lora",), RecipeError, "not of the form key=value"),
        (["lora:train={"], ("lora",), RecipeError, "the value is not YAML"),
        (["mood:start.factors=kept"], ("lora", "i-lora"), ComparisonError, "without the scoring set"),
        (["lora:train.epoch=1"], ("lora",), RecipeError, "train.epoch: unknown key"),
        (["lora:stage2.epochs=1"], ("lora",), ComparisonError, "lora:stage2 is of recipe format 1"),
        (["budgt=1"], ("lora",), RecipeError, "budgt: unknown key"),
        (["i-lora:measure.scoring_batch_size=64"], ("lora", "i-lora"), DataError, "less than one batch of 64"),
        (["igu-lora:measure.every=10"], ("lora", "igu-lora"), AllocationError, "the last cut is at step"),
    ):
        with pytest.raises(error, match=message):
            run_grid(read_grid([recipe_file], overrides, methods, (0,), None, folder), launch=in_this_process)
    assert not (folder / "cells").exists()
    shutil.copyfile(recipe_file, tmp_path / "other.yaml")
    with pytest.raises(ComparisonError, match="two recipes are called 'mood'"):
        read_grid([recipe_file, recipe_file], [], ("lora",), (0,), None, folder)
    assert ERROR not in [path.name for path in folder.rglob("*")]


@pytest.mark.long
def test_a_grid_of_a_task_that_writes(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"was the day {'warm' if k % 2 else 'cold'}", "answer": f"#### {k % 2}"} for k in range(60)]
    for part, chosen in (("train", rows), ("test", rows[:12])):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "task": "gsm8k"}
    (tmp_path / "text.txt").write_text("the day was fine and the house was cold " * 20)
    stage = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2}
    content = {
        "model": str(tiny_writer("decoder", tiny_folder, tmp_path / "model")), "budget": "r=1",
        "data": {**data, "max_length": 12, "max_target_length": 4, "general_text": str(tmp_path / "text.txt")},
        "measure": {"scoring_batch_size": 4}, "triplets": {"initial_rank": 2}, "train": stage,
    }  # fmt: skip
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(content))
    asked = read_grid([tmp_path / "sums.yaml"], [], ("lora", "svd-truncate", "full"), (0,), None, tmp_path / "grid")
    asked = searched(asked, (0.5, 1.0), launch=in_this_process)
    results = run_grid(asked, launch=in_this_process)
    assert {cell.method for cell in results} == {"lora", "svd-truncate", "full"}
    assert all(set(one.metrics) == {"exact_match"} for one in results.values())
    assert len({one.tokens for one in results.values()}) == 1
    # All of them forget something of the same base; losses of targets are kept.
    rows = answer(asked.cells(), results)
    assert all(row.forgotten[0] != 0 for row in rows)
    assert len({row.base_loss for row in rows}) == 1
    assert {len(one) for one in read_cell_losses(asked.cells(), asked.folder).values()} == {12}


def test_rates_have_a_budget_where_there_are_several() -> None:
    assert rates_in_words({("a", "r=1", "lora"): 0.01, ("b", "r=1", "lora"): 3e-3}).endswith(
        "a, lora 0.01; b, lora 0.003"
    )
    assert rates_in_words({("a", "r=1", "lora"): 0.01, ("a", "r=2", "lora"): 0.02}).endswith(
        "a, r=1, lora 0.01; a, r=2, lora 0.02"
    )
