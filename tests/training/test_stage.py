"""What both stages share."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorank.runs.run import run


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
