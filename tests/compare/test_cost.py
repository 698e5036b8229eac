"""What a grid costs: from measured times alone; and what its seeds can show."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.compare.made_up import measured

from lorank.compare.cells import Cell, cells_of
from lorank.compare.cost import duration, time_left, what_seeds_can_show
from lorank.compare.grid import Grid


def grid(seeds: int, methods: int) -> Grid:
    names = (
        "lora",
        "eva",
        "i-lora",
        "igu-lora",
        "adalora",
        "magnitude",
        "gradient",
        "svd-truncate",
        "sensitivity-lora",
    )
    return Grid({"mood": {}}, ("r=1",), names[: methods + 1], tuple(range(seeds)), {}, Path("x"))


def test_time_is_known_from_cells_of_the_same_kind_alone() -> None:
    of = grid(3, 1)
    cells = list(cells_of(["mood", "cola"], ["r=1"], ["lora", "eva"], range(3)))
    assert time_left(of, cells, {}) == "time left: not known yet, no cell of lora (mood, r=1) and 3 other kinds is done"
    done = {cell: measured(0.5, seconds=100.0, before=20.0, wall=150.0) for cell in cells[:3]}
    left = [cell for cell in cells if cell not in done]
    # Two of mood's three cells each, and of cola's uniform LoRA, at 150 s; nothing is known of EVA on CoLA.
    assert time_left(of, left, done) == "time left: more than 15 min; not known yet, no cell of eva (cola, r=1) is done"
    done[Cell("cola", "r=1", "eva", 0)] = measured(0.5, seconds=400.0, before=200.0)  # of an earlier version
    left = [cell for cell in cells if cell not in done]
    assert time_left(of, left, done) == "about 35 min left"
    assert time_left(of, left, done, processes=2) == "about 18 min left"
    assert time_left(of, left[-1:], done, processes=8) == "about 10 min left"  # no cell is faster than itself
    assert time_left(of, [], done) == "nothing left"
    # In a search of learning rates a cell tells of those with other factors of the rate.
    search = replace(of, alike={"mood/times-0.3": "mood", "mood/times-1.0": "mood"})
    first, second = (Cell(task, "r=1", "lora", 1000) for task in search.alike)
    assert time_left(search, [second], {first: measured(0.5, wall=600.0)}) == "about 10 min left"
    assert time_left(search, [second], {}).endswith("no cell of lora (mood, r=1) is done")
    assert [duration(s) for s in (3.2, 600, 9600)] == ["3 s", "10 min", "2 h 40 min"]


@pytest.mark.parametrize(
    ("seeds", "methods", "test", "said"),
    [
        (1, 1, "t", "warning: a single seed can show nothing"),
        (2, 8, "t", "warning: with 2 seeds and 8 comparisons a difference is probably shown (4 times in 5) if it is at least 92"),
        (5, 4, "t", "with 5 seeds and 4 comparisons a difference is probably shown (4 times in 5) if it is at least 2.5 st"),
        (5, 1, "wilcoxon", "p-value of the Wilcoxon test is 0.0625, after Holm's correction 0.0625; 6 seeds would show"),
        (5, 0, "t", "nothing is compared with uniform LoRA"),
    ],
)  # fmt: skip
def test_what_seeds_can_show(seeds: int, methods: int, test: str, said: str) -> None:
    found = what_seeds_can_show(grid(seeds, methods), test=test)  # type: ignore[arg-type]
    assert said in found
    assert found.startswith("warning") == (seeds < 5 or test == "wilcoxon")
