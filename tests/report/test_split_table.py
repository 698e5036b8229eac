"""Tables in terminals of every width: nothing is cut, no number is wrapped."""

import io

import pytest
from rich.console import Console

from lorank.report.split_table import SplitTable


def lines_of(table: SplitTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def wide_table() -> SplitTable:
    table = SplitTable(
        "ranks", ("layer", *(f"block.projection_{k}" for k in range(9)), "in words"), prose=("in words",)
    )
    for layer in range(3):
        table.add_row(
            str(layer), *(f"{layer}{k},000,000" for k in range(9)), "a sentence of many words about this layer"
        )
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 300])
def test_every_cell_is_whole_at_every_width(width: int) -> None:
    lines = lines_of(wide_table(), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "\n".join(lines)
    for layer in range(3):
        for k in range(9):
            assert sum(f" {layer}{k},000,000 " in line for line in lines) == 1
    words = " ".join(cell for line in lines for cell in line.split())
    assert all(words.count(word) >= 3 for word in ("sentence", "many", "words", "about"))


def test_each_part_says_what_its_rows_are_about_and_the_title_stands_once() -> None:
    lines = lines_of(wide_table(), 80)
    parts = sum(line.startswith("└") for line in lines)
    assert parts > 1
    assert sum(line.startswith("ranks") for line in lines) == 1
    assert sum(line.startswith("│ 2     │") for line in lines) >= parts
    assert len(lines_of(wide_table(), 300)) == 8  # title, heading with its two rules, three rows, a rule


def test_parts_are_about_as_wide_as_each_other() -> None:
    table = SplitTable(
        None, ("layer", *("query_proj", "key_proj", "value_proj", "attention_out", "intermediate", "output"))
    )
    table.add_row("0", *"123456")
    widths = [len(line) for line in lines_of(table, 80) if line.startswith("└")]
    assert len(widths) == 2
    assert max(widths) - min(widths) < 20


def test_cells_are_shown_as_they_are() -> None:
    table = SplitTable(None, ("[bold]name", "value"))
    table.add_row("[red]x[/red] :smile:", "1")
    text = "\n".join(lines_of(table, 80))
    assert "[bold]name" in text
    assert "[red]x[/red] :smile:" in text


def test_a_name_that_no_part_has_place_for_is_folded() -> None:
    name = "q" * 50
    table = SplitTable(None, (name, "value"))
    table.add_row(name, "1")
    text = "".join(lines_of(table, 40))
    assert text.count("q") == 100
