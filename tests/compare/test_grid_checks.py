"""What is found before a grid runs: everything that stops cells at once, and another base model than that of finished cells."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.compare.made_up import measured

from lorank.compare.cells import budget_of
from lorank.compare.grid import Grid
from lorank.compare.grid_checks import check_base, check_grid
from lorank.errors import ComparisonError, OutputError, RecipeError
from lorank.models.base_fingerprint import base_sum
from lorank.models.pretrained import Pretrained


def grid(folder: Path, data: dict[str, str], out: Path, **contents: dict[str, Any]) -> Grid:
    usual = {"model": str(folder), "budget": "r=1", "data": {**data, "max_length": 16}, "triplets": {"initial_rank": 2}}
    tasks = {name: {**usual, **content} for name, content in (contents or {"mood": {}}).items()}
    return Grid(tasks, ("r=1",), ("lora", "i-lora"), (0, 1), {}, out)


def test_cells_of_another_base_are_not_continued(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    asked = grid(folder, tiny_data, tmp_path / "grid")
    cell = asked.cells()[0]
    done = {cell: measured(0.5, base=base_sum(Pretrained(str(folder))))}
    check_base(asked, {})
    check_base(asked, done)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b"\0")
    with pytest.raises(OutputError, match="the base model of mood, or its tokenizer, changed since its first cells"):
        check_base(asked, done)
    check_base(asked, {cell: measured(0.5)})  # results of an earlier version do not say


def test_all_findings_of_all_tasks_are_said_at_once(
    tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    asked = grid(
        tiny_folder, tiny_data, tmp_path / "grid",
        lost={"data": {"train": "/no/such.tsv", "test": "/no/such.tsv"}}, long={"data": {**tiny_data, "max_length": 64}},
        few={"measure": {"scoring_batch_size": 64}}, fine={},
    )  # fmt: skip
    with pytest.raises(RecipeError, match="3 things have to be mended:") as caught:
        check_grid(asked)
    assert all(said in str(caught.value) for said in ("no such file", "has 32 positions", "less than one batch of 64"))


def test_a_budget_of_each_group_is_none_that_all_methods_share() -> None:
    with pytest.raises(ComparisonError, match="a budget for each of 2 groups of modules"):
        budget_of({"budget": {"vision_model": "r=2", "language_model": "r=1"}})
