"""Where values stand on the axis of a line plot."""

import pytest

from lorank.compare.sweep.line_plot import positions


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2", "4", "8", "16", "32"], ([2, 4, 8, 16, 32], 2)),
        (["0.25", "1", "0.5"], ([0.25, 1, 0.5], 2)),
        (["1", "10", "1000"], ([1, 10, 1000], 10)),
        (["2", "4"], ([2, 4], None)),
        (["1", "2", "3"], ([1, 2, 3], None)),
        (["0", "2", "4"], ([0, 2, 4], None)),
        (["r=2", "r=4", "r=8"], ([0, 1, 2], None)),
        (["1", "inf", "nan"], ([0, 1, 2], None)),
    ],
)
def test_positions(names: list[str], expected: tuple[list[float], int | None]) -> None:
    assert positions(names) == expected
