"""Ranks before, after and over time, as they are in the history of cuts."""

from typing import Any

import numpy as np

from lorank.allocation.cut_history import CutHistory
from lorank.report.cut_map import cuts_figure

NAMES = [f"layer.{layer}.{name}" for layer in (0, 1) for name in ("q", "up")]


def history(*cuts: tuple[int, ...]) -> CutHistory:
    made = CutHistory(dict.fromkeys(NAMES, 4), dict.fromkeys(NAMES, 10))
    for number, ranks in enumerate(cuts, 1):
        made.add(10 * number, dict(zip(NAMES, ranks, strict=True)), {name: np.ones(4) for name in NAMES})
    return made


def cells(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_one_cut_is_before_and_after() -> None:
    before, after, bar = cuts_figure(history((1, 0, 3, 4)), "title").axes
    assert cells(before) == ["4"] * 4
    assert cells(after) == ["1", "0", "3", "4"]
    assert before.get_xlabel() == "before: total rank 16"
    assert after.get_xlabel() == "after the cut at step 10: total rank 8"
    assert bar.get_ylabel() == "rank"


def test_several_cuts_are_shown_over_time() -> None:
    before, after, time, _ = cuts_figure(history((4, 3, 4, 4), (2, 3, 4, 1), (0, 3, 4, 1)), "title").axes
    assert cells(after) == ["0", "3", "4", "1"]
    assert after.get_xlabel() == "after 3 cuts: total rank 8"
    assert cells(before) == ["4"] * 4
    # Rows by projection, then by layer: q of 0, q of 1, up of 0, up of 1. A zero has no colour.
    drawn = time.collections[0].get_array().reshape(4, 3)
    assert drawn.filled(0).tolist() == [[4, 2, 0], [4, 4, 4], [3, 3, 3], [4, 1, 1]]
    assert [label.get_text() for label in time.get_yticklabels()] == ["q", "up"]
    assert [label.get_text() for label in time.get_xticklabels()] == ["10", "20", "30"]


def test_before_the_first_cut_nothing_is_after() -> None:
    _, after, _ = cuts_figure(history(), "title").axes
    assert after.get_xlabel() == "no cut yet: total rank 16"
