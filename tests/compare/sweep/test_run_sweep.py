"""Tiny sweeps: stopped and continued, the tables and the picture that they leave, one through the command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from matplotlib import image
from tests.compare.made_up import measured
from typer.testing import CliRunner

from lorank.cli import app
from lorank.compare.cells import RESULT, Cell, write_measured
from lorank.compare.run_cell import main
from lorank.compare.sweep.run_sweep import run_sweep
from lorank.compare.sweep.variants import Sweep, read_sweep, read_values, read_variants
from lorank.errors import ComparisonError

VARIANTS = {"full": [], "no second stage": ["start.factors=kept", "search=null"]}


@pytest.fixture
def recipe_file(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path) -> Path:
    content = {
        "model": str(tiny_folder), "budget": "keep=50%", "data": {**tiny_data, "max_length": 16}, "metrics": ["accuracy"],
        "triplets": {"initial_rank": 2}, "search": {"max_steps": 3}, "measure": {"scoring_batch_size": 8},
        "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2},
    }  # fmt: skip
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False))
    return path


def over(
    recipe: Path, text: str, *overrides: str, methods: tuple[str, ...] | None = None, seeds: tuple[int, ...] = (0,)
) -> Sweep:
    key, variants = read_values(text)
    return read_sweep(
        [recipe], overrides, variants, key=key, methods=methods, seeds=seeds, folder=recipe.parent / "sweep"
    )


def never(folder: Path) -> int:
    raise AssertionError(f"{folder} is done")


def made_up(sweep: Sweep, begun: list[str], until: int = 100) -> Callable[[Path], int]:
    """Runs a cell by writing a result that depends on rank, seed and method; stopped after so many cells."""

    def launch(folder: Path) -> int:
        if len(begun) == until:
            raise KeyboardInterrupt
        cell = next(one for one in sweep.cells() if folder.match(str(one.folder)))
        begun.append(str(cell.folder))
        rank = int(cell.task.partition("=")[2])
        parameters = 224 * rank - 16 * (cell.method == "i-lora")
        accuracy = 0.7 + 0.01 * rank + 0.02 * cell.seed + 0.001 * (cell.method == "i-lora") * (1 + cell.seed)
        write_measured(folder / RESULT, measured(accuracy, parameters=parameters), sweep.fingerprint(cell))
        return 0

    return launch


def test_a_sweep_over_the_initial_rank_is_continued_and_drawn_again(recipe_file: Path) -> None:
    sweep = over(recipe_file, "triplets.initial_rank=2,4,8", "budget=r=1", seeds=(0, 1))
    begun: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, launch=made_up(sweep, begun, 5))
    found = run_sweep(sweep, launch=made_up(sweep, begun))
    assert len(begun) == len(set(begun)) == 12  # what was done before it was stopped is not done again
    folder = recipe_file.parent / "sweep"
    with (folder / "table.csv").open() as file:
        line = list(csv.DictReader(file))[2]
    assert [line[key] for key in ("task", "variant", "method", "parameters", "seeds")] == [
        "mood",
        "4",
        "i-lora",
        "880",
        "2",
    ]
    assert float(line["mean"]) == pytest.approx(0.7 + 0.04 + 0.01 + 0.0015)
    assert float(line["difference_points"]) == pytest.approx(0.15)
    heading, _, first, *_ = (folder / "table.md").read_text().splitlines()
    assert heading.startswith(
        "| task | metric | triplets.initial_rank | parameters | i-lora | lora | seeds | i-lora to lora |"
    )
    assert first.startswith("| mood | accuracy | 2 | 432 to 448 | 0.7315 ± 0.0148 | 0.7300 ± 0.0141 | 2 | +0.0015 |")
    assert [line.partition(":")[0] for line in found.sentences] == [
        f"mood/initial_rank={rank}, budget r=1" for rank in (2, 4, 8)
    ]  # fmt: skip
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    assert set(files) == {"table.md", "table.tex", "table.csv", "sweep.json", "sweep.png", "sweep.svg"}
    assert image.imread(folder / "sweep.png").shape[0] > 300
    for name in files:
        (folder / name).unlink()
    assert repr(run_sweep(sweep, launch=never).rows) == repr(found.rows)  # text: nan is not equal to itself
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_a_failed_cell_is_said(recipe_file: Path) -> None:
    sweep = over(recipe_file, "triplets.initial_rank=2,4", "budget=r=1")
    launch = made_up(sweep, [])
    found = run_sweep(sweep, tries=1, launch=lambda folder: 9 if "=4/r=1/i-lora" in str(folder) else launch(folder))
    assert [cell.method for cell in found.failed] == ["i-lora"]
    text = (recipe_file.parent / "sweep" / "table.md").read_text()
    assert "| mood | accuracy | 4 | 896 | - ± - | 0.7400 ± - | 0 to 1 of 1 | - | - |" in text
    assert "initial_rank=4/r=1/i-lora/seed-0 failed: ended with 9" in text


@pytest.mark.long
def test_parameters_follow_the_initial_rank(recipe_file: Path) -> None:
    found = run_sweep(over(recipe_file, "triplets.initial_rank=2,4"), launch=main)
    # Half of 2 and of 4 units of rank in every module, for both methods alike: less than a unit apart, which costs 48 at most.
    spent = {(row.task[-1], row.method): row.parameters[0] for row in found.rows}
    assert all(abs(spent[rank, "i-lora"] - spent[rank, "lora"]) < 48 for rank in ("2", "4"))
    assert spent["4", "i-lora"] > 1.5 * spent["2", "i-lora"]
    assert "so it follows triplets.initial_rank" in found.notes[0]


@pytest.mark.long
def test_named_variants_are_compared_with_the_first(recipe_file: Path) -> None:
    folder = recipe_file.parent / "sweep"
    variants = read_variants(recipe_file.parent / "stages.yaml")
    sweep = read_sweep([recipe_file], [], variants, key=None, methods=None, seeds=(0,), folder=folder)
    found = run_sweep(sweep, launch=main)
    assert [one.variant for one in found.changes] == list(VARIANTS)
    results = {row.task: row for row in found.rows}
    full, kept = results["mood/full"], results["mood/no-second-stage"]
    difference = found.changes[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(kept.mean - full.mean)
    assert found.changes[1].relative == pytest.approx((kept.mean - full.mean) / full.mean)
    heading, _, *lines = (folder / "table.md").read_text().splitlines()
    assert heading.startswith("| variant | mood (accuracy) | Δ points | Δ relative |")
    assert lines[1].startswith(f"| no second stage | {kept.mean:.4f} ± - | {100 * difference.mean:+.2f} |")
    assert found.notes[1] == "no second stage: start.factors=kept search=null"
    assert not (folder / "sweep.png").exists()
    content = json.loads((folder / "sweep.json").read_text())
    assert [one["overrides"] for one in content["variants"]] == list(VARIANTS.values())
    assert len(content["cells"]) == 2


@pytest.mark.long
def test_learning_rates_are_searched_for_each_variant(recipe_file: Path) -> None:
    sweep = over(recipe_file, "budget=r=1,r=2", methods=("lora",))
    found = run_sweep(sweep, search=(1.0, 1e-6), launch=main)
    record = json.loads((recipe_file.parent / "sweep" / "search.json").read_text())["found"]
    assert [(one["task"], one["budget"]) for one in record] == [("mood/budget=r=1", "r=1"), ("mood/budget=r=2", "r=2")]
    rates = {one["task"]: one["chosen"] for one in record}
    cells = [Cell(f"mood/budget={budget}", budget, "lora", 0) for budget in ("r=1", "r=2")]
    orders = [recipe_file.parent / "sweep" / "cells" / cell.folder / "cell.json" for cell in cells]
    for cell, order in zip(cells, orders, strict=True):
        assert json.loads(order.read_text())["own"]["train"]["learning_rate"] == rates[cell.task]
    assert found.notes[-1].startswith("learning rates that were searched for: mood/budget=r=1, lora ")
    assert found.sentences == ()  # there is nothing that uniform LoRA is compared with


def test_triplets_that_are_kept_are_not_compared_with_methods_that_train_on_more(recipe_file: Path) -> None:
    content = {key: value for key, value in yaml.safe_load(recipe_file.read_text()).items() if key != "search"}
    recipe_file.write_text(yaml.safe_dump(content))
    sweep = over(recipe_file, "start.factors=kept,fresh", methods=("i-lora", "lora"))
    with pytest.raises(ComparisonError, match="would be trained without the scoring set"):
        run_sweep(sweep, launch=never)


@pytest.mark.long
def test_the_command(recipe_file: Path, tmp_path: Path) -> None:
    def lorank(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["sweep", str(recipe_file), *map(str, arguments)])
        return done.exit_code, done.output

    common = ("--seeds", 1, "--output", tmp_path / "out")
    code, said = lorank("--variants", tmp_path / "stages.yaml", *common)
    assert code == 0, said
    assert "full is what the others are compared with (metric 0." in said
    assert "table               " in said
    code, said = lorank("--variants", tmp_path / "stages.yaml", *common)
    assert "2 of 2 cells are done, 0 are left" in said
    for options, message in (
        ((), "give either --over KEY=VALUE,VALUE"),
        (("--over", "train.epochs=1,2", "--variants", tmp_path / "stages.yaml"), "give either --over"),
        (("--variants", tmp_path / "stages.yaml", "--methods", "lora"), "--methods is for --over"),
        (("--over", "train.epochs=1,2", "--level", 5), "--level is a probability"),
    ):
        code, said = lorank(*options, *common)
        assert (code, message in said) == (1, True), said
