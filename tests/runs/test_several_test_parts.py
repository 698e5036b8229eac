"""A recipe with several test parts: the first is what methods are compared on, the others are reported beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorank.errors import DataError, OutputError, RecipeError
from lorank.report.tables import result_table
from lorank.runs.run import run
from lorank.tasks.data import load_task_data


def part(folder: Path, name: str, rows: list[tuple[str, str]]) -> str:
    (folder / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return str(folder / f"{name}.tsv")


def test_all_parts_are_evaluated_and_shown(tiny_recipe: Any, tiny_data: dict[str, str], tmp_path: Path) -> None:
    other = part(tmp_path, "other", [("fine", "good"), ("dull", "bad"), ("warm", "good")])
    recipe = tiny_recipe(method="lora", data={"test": {"usual": tiny_data["test"], "hard": other}})
    alone = run(tiny_recipe(method="lora"), tmp_path / "alone").results["lora"]
    result = run(recipe, tmp_path / "out").results["lora"]
    assert result["metrics"] == alone["metrics"]  # the first part is the one that is judged
    assert set(result["more"]) == {"hard"}
    assert set(result["more"]["hard"]["metrics"]) == set(result["metrics"])
    assert result["more"]["hard"]["metrics"]["accuracy"] in (0, 1 / 3, 2 / 3, 1)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]["lora"]["more"] == result["more"]
    console = Console(width=200, record=True, quiet=True)
    console.print(result_table({"lora": result}, 1))
    assert "hard: accuracy" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "3 of `other.tsv`" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    # Another content of a further part is other data.
    part(tmp_path, "other", [("fine", "bad"), ("dull", "bad")])
    with pytest.raises(OutputError, match="the data changed since this run began: hard was"):
        run(recipe, tmp_path / "out")


def test_parts_are_checked_as_the_first_one_is(tiny_recipe: Any, tiny_data: dict[str, str], tmp_path: Path) -> None:
    strange = part(tmp_path, "other", [("fine", "marvellous")])
    recipe = tiny_recipe(data={"test": {"usual": tiny_data["test"], "hard": strange}})
    with pytest.raises(DataError, match=r"hard.*marvellous"):
        load_task_data(recipe.data)
    with pytest.raises(DataError, match=r"data\.hard: .*no such file"):
        load_task_data(tiny_recipe(data={"test": {"usual": tiny_data["test"], "hard": "/no/such.tsv"}}).data)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"train": "x.tsv"},
        {"a": "x.tsv", "test": "x.tsv"},
        {"../a": "x.tsv"},
        {".": "x"},
        {"a|b": "x"},
        {"checkpoint-9": "x"},
    ],
)
def test_names_that_cannot_be(tiny_recipe: Any, parts: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"data\.?.*(at least one part|a part is called)"):
        tiny_recipe(data={"test": parts})


def test_splits_of_the_hub(tiny_recipe: Any) -> None:
    data = {"name": "nyu-mll/glue", "train": None, "test": None, "test_split": {"matched": "a", "mismatched": "b"}}
    assert tiny_recipe(data=data).data.test_parts == {"matched": "a", "mismatched": "b"}
