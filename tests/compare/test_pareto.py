"""What is not beaten in quality, parameters and time."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from matplotlib import image
from tests.compare.made_up import measured

from lorank.compare.answer import Row, answer
from lorank.compare.cells import cells_of
from lorank.compare.pareto import _figure, beats, draw_pareto, with_front
from lorank.compare.result_table import cells_of_row
from lorank.report.picture import plain_text


def rows_of(values: dict[str, tuple[float, int, float, float]]) -> list[Row]:
    cells = list(cells_of(["mood"], ["r=1"], list(values), range(2)))
    results = {}
    for cell in cells:
        accuracy, parameters, seconds, before = values[cell.method]
        results[cell] = measured(accuracy, parameters=parameters, seconds=seconds, before=before)
    return answer(cells, results)


def test_what_is_not_beaten(tmp_path: Path) -> None:
    rows = with_front(
        rows_of(
            {
                "lora": (0.80, 448, 10.0, 0.0),
                "i-lora": (0.85, 448, 10.0, 9.0),  # better and slower
                "eva": (0.79, 440, 10.2, 0.0),  # worse, and neither smaller nor faster by what counts
                "igu-lora": (0.84, 448, 12.0, 12.0),  # behind i-lora in two
                "full": (0.90, 22_000, 15.0, 0.0),
                "shuffled": (0.95, 448, 10.0, 0.0),  # its plan was paid for by another
            }
        )
    )
    found = {row.method: row.not_beaten for row in rows}
    assert found == {"lora": True, "i-lora": True, "eva": False, "igu-lora": False, "full": True, "shuffled": None}
    assert [cells_of_row(row)["not beaten"] for row in rows[:3]] == ["yes", "yes", "no"]
    # Nothing beats itself, and equals stand side by side.
    assert not beats(rows[0], rows[0])
    assert all(row.not_beaten for row in with_front([rows[0], replace(rows[0], method="eva")]))
    draw_pareto([*rows, *(replace(row, task="from_$5_to_$10") for row in rows)], tmp_path / "pareto.png")
    assert image.imread(tmp_path / "pareto.png").shape[0] > 300


def test_axes_show_numbers_and_not_what_to_add_to_them() -> None:
    rows = with_front(rows_of({"lora": (-10.8101, 1000, 10.0, 1.0), "eva": (-10.8112, 990, 10.0, 1.0)}))
    with plain_text():
        figure = _figure(rows)
        figure.draw_without_rendering()
    assert [panel.yaxis.get_offset_text().get_text() for panel in figure.axes] == ["", ""]
    assert float(figure.axes[0].yaxis.get_ticklabels()[0].get_text().replace("\u2212", "-")) < -10.8


def test_numbers_under_an_axis_do_not_lie_upon_one_another() -> None:
    rows = with_front(rows_of({"lora": (0.8, 610_560, 114.0, 0.0), "adalora": (0.8, 610_368, 132.0, 0.0)}))
    with plain_text():
        figure = _figure(rows)
        figure.draw_without_rendering()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        shown = [label for label in panel.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in shown]
        assert len(shown) >= 2
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert all(label.get_text().startswith("610,") for label in figure.axes[0].get_xticklabels())
