"""What both stages share."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorank.models.pretrained import Pretrained
from lorank.plan import RankPlan
from lorank.runs.run import _rank_map_title, run


def test_in_a_terminal_losses_are_lines_of_the_console_and_the_bar_is_a_bar(
    tiny_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console(file=io.StringIO(), width=200)
    run(tiny_recipe(method="lora", preset=None), tmp_path / "out", console)
    printed = capsys.readouterr()
    assert "10/10" in printed.err
    assert "{" not in printed.out + printed.err  # transformers' dictionaries
    assert "train, lora: step 8/10  loss" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_stage_that_is_shorter_than_log_every_says_its_loss_at_its_end(tiny_recipe: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    run(tiny_recipe(method="lora", preset=None, train={"max_steps": 3}), tmp_path / "out", console)
    lines = [line for line in console.file.getvalue().splitlines() if "train, lora: step" in line]  # type: ignore[attr-defined]
    assert [line.split("  ")[0] for line in lines] == ["train, lora: step 3/3"]


def test_the_picture_names_the_file_of_the_data(tiny_recipe: Any) -> None:
    recipe = tiny_recipe()
    plan = RankPlan({"a": 1}, {"a": 8}, "r=1", 8, 2.0, {})
    base = Pretrained("some/model")
    for train, named in (("here/mails.csv", "mails.csv"), ("here/r8/train.tsv", "r8")):
        section = recipe.data.model_copy(update={"train": train})
        assert _rank_map_title(base, section, plan, "lora", None).startswith(f"lora · model · {named}\nbudget r=1")
