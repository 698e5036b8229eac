"""From results to claims: pairs of seeds, missing cells, cells that are not equal, plain words, tables, the picture."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from tests.compare.made_up import grid_of, measured

from lorank.compare import forest_plot
from lorank.compare.answer import answer, contrasts
from lorank.compare.cells import Cell
from lorank.compare.forest_plot import draw_forest_plot
from lorank.compare.result_table import cells_of_row, comma_separated, latex, markdown, terminal_tables
from lorank.compare.words import general_sentences, sentence
from lorank.errors import ComparisonError


def test_an_effect_is_claimed_and_its_absence_is_not() -> None:
    cells, results = grid_of({"igu-lora": 0.03, "eva": -0.03, "i-lora": 0.0, "shuffled": 0.0})
    rows = {row.method: row for row in answer(cells, results)}
    said = {method: sentence(row) for method, row in rows.items()}
    assert "igu-lora is better than uniform LoRA by +0.0" in said["igu-lora"]
    assert "eva is worse than uniform LoRA by -0.0" in said["eva"]
    for method in ("i-lora", "shuffled"):
        assert f"{method} is not shown to differ from uniform LoRA: " in said[method]
    assert "what the others are compared with" in said["lora"]
    assert "seeds would show a difference of this size" in said["i-lora"]
    # The luck of a seed is large, its differences are not: that is what pairs are for.
    assert rows["igu-lora"].std > 3 * rows["igu-lora"].difference.std  # type: ignore[union-attr]


def test_missing_cells_are_left_out_and_said() -> None:
    cells, results = grid_of({"igu-lora": 0.03, "eva": 0.0}, seeds=3)
    del results[Cell("mood", "r=1", "igu-lora", 1)]
    for seed in range(3):
        del results[Cell("mood", "r=1", "eva", seed)]
    results[Cell("mood", "r=1", "igu-lora", 2)] = measured(None)  # a metric that is not defined
    rows = {row.method: row for row in answer(cells, results)}
    assert rows["igu-lora"].missing == (1,)
    assert rows["igu-lora"].difference.pairs == 1  # type: ignore[union-attr]
    assert "cannot be compared: 1 seed in common" in sentence(rows["igu-lora"])
    assert "cannot be compared: 0 seeds" in sentence(rows["eva"])
    assert math.isnan(rows["eva"].mean)
    assert "1 of 3" in markdown(list(rows.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 901}, r"differ in tokens \(901 and 900\)"),
        ({"steps": 11}, r"differ in steps"),
        ({"data": {"train": "c", "test": "b"}}, r"differ in data"),
        ({"scale": 0.125}, r"different effective scales \(0.125 to 2\)"),
    ],
)
def test_cells_that_are_not_equal_are_not_compared(options: dict[str, object], message: str) -> None:
    cells, results = grid_of({"igu-lora": 0.0}, seeds=2)
    results[Cell("mood", "r=1", "igu-lora", 1)] = measured(0.8, **options)
    with pytest.raises(ComparisonError, match=message):
        answer(cells, results)


def test_refusals() -> None:
    cells, results = grid_of({"eva": 0.0}, seeds=2)
    with pytest.raises(ComparisonError, match="level is 5; allowed: a probability"):
        answer(cells, results, level=5)
    with pytest.raises(ComparisonError, match="metric 'bleu' is none of mood's; allowed: accuracy, f1"):
        answer(cells, results, metrics={"mood": "bleu"})
    with pytest.raises(ComparisonError, match=r"method 'evaa' is unknown \(did you mean eva\?\)"):
        grid_of({"evaa": 0.0})


def test_a_method_is_tested_against_its_own_controls() -> None:
    effects = {"igu-lora": 0.03, "eva": 0.02, "shuffled": 0.03, "svd-truncate": 0.0}
    rows = answer(*grid_of(effects))
    controlled = {("mood", control): "igu-lora" for control in ("shuffled", "svd-truncate")}
    found = contrasts(rows, controlled)
    assert [(one.method, one.control) for one in found] == [("igu-lora", "svd-truncate"), ("igu-lora", "shuffled")]
    said = [sentence(one) for one in found]
    assert "igu-lora is better than an adapter cut by singular values by +0.0" in said[0]
    assert "igu-lora is not shown to differ from its own plan, shuffled" in said[1]
    # Both are better than uniform LoRA: only the test between them says that the order of the ranks is not why.
    assert all(row.difference.holm < 0.05 for row in rows if row.method in ("igu-lora", "shuffled"))  # type: ignore[union-attr]
    # A family of their own: corrected over two, not over the table.
    assert max(one.difference.holm for one in found) <= 2 * max(one.difference.p for one in found)
    assert contrasts(rows, {("mood", "shuffled"): "i-lora"}) == []


def test_triplets_are_tested_against_triplets_of_uniform_rank() -> None:
    rows = answer(*grid_of({"igu-lora": 0.03, "adalora": 0.03, "uniform-triplets": 0.03}))
    found = contrasts(rows, {("mood", "uniform-triplets"): "adalora"})
    assert [(one.method, one.control) for one in found] == [("adalora", "uniform-triplets")]
    assert "adalora is not shown to differ from triplets that end at the uniform rank" in sentence(found[0])


def test_what_was_left_out_or_cut_is_said() -> None:
    cells, results = grid_of({"eva": 0.03, "svd-truncate": -0.03}, seeds=6)
    results[Cell("mood", "r=1", "eva", 1)] = measured(None)
    for seed in range(6):
        cell = Cell("mood", "r=1", "svd-truncate", seed)
        results[cell] = replace(results[cell], uncut={"accuracy": 0.75})
    rows = {row.method: row for row in answer(cells, results)}
    assert "5 seeds (1 of 6 have no value and are left out)" in sentence(rows["eva"])
    assert sentence(rows["svd-truncate"]).endswith("6 seeds; before it was cut 0.7500.")
    assert "| 5 of 6 |" in markdown([rows["eva"]])
    assert "left out" not in sentence(rows["svd-truncate"])
    # Most seeds are better, one is so much worse that the mean is: nothing is claimed.
    cells, results = grid_of({"eva": 0.03}, seeds=12)
    results[Cell("mood", "r=1", "eva", 3)] = measured(0.0)
    row = answer(cells, results, test="wilcoxon")[1]
    assert "the mean and the ranks of the differences to uniform LoRA point to different sides" in sentence(row)


def test_a_shorter_second_stage_is_equal_with_what_its_plan_cost() -> None:
    cells, results = grid_of({"i-lora": 0.0, "equal-compute": 0.0}, seeds=2)
    for seed in range(2):
        results[Cell("mood", "r=1", "equal-compute", seed)] = measured(0.8, steps=4, steps_before=6, tokens=300)
    assert len(answer(cells, results)) == 3
    results[Cell("mood", "r=1", "equal-compute", 1)] = measured(0.8, steps=5, steps_before=6, tokens=300)
    with pytest.raises(ComparisonError, match=r"differ in steps \(11 and 10\)"):
        answer(cells, results)


def test_tables(tmp_path: Path) -> None:
    cells, results = grid_of({"igu-lora": 0.03, "svd-truncate": 0.0, "shuffled": 0.0, "full": 0.01})
    rows = answer(cells, results)
    read = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert [line["method"] for line in read] == ["lora", "igu-lora", "svd-truncate", "full", "shuffled"]
    assert float(read[1]["difference"]) == pytest.approx(rows[1].difference.mean)  # type: ignore[union-attr]
    assert (read[0]["difference"], read[0]["parameters"]) == ("", "448")
    table = markdown(rows)
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert table.count("(control)") == 2
    written = latex(rows)
    assert written.count(r"\\") == 6
    assert r"$\pm$" in written
    tables = terminal_tables([*rows, *(replace(row, task="other") for row in rows)])
    assert [table.title for table in tables] == ["mood, r=1: accuracy", "other, r=1: accuracy"]
    assert [len(table.rows) for table in tables] == [5, 5]
    draw_forest_plot([*rows, *(replace(row, task="from_$5_to_$10") for row in rows)], tmp_path / "forest.png")
    assert image.imread(tmp_path / "forest.png").shape[0] > 300


def test_the_forest_plot_has_numbers_and_sets_controls_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, results = grid_of({"svd-truncate": 0.0, "eva": 0.03, "shuffled": 0.0, "igu-lora": 0.01}, seeds=6)
    results[Cell("mood", "r=1", "eva", 1)] = measured(None)
    rows, drawn = answer(cells, results), list[Any]()
    monkeypatch.setattr(forest_plot, "save_picture", lambda figure, path: drawn.append(figure))
    draw_forest_plot(rows, tmp_path / "forest.png")
    marks, numbers = drawn[0].axes
    names = [label.get_text() for label in reversed(marks.get_yticklabels())]
    methods = [row.method for row in rows if row.difference and row.method in ("eva", "igu-lora")]
    assert names == [*methods, *(row.method for row in rows if row.method in ("svd-truncate", "shuffled"))]
    said = [text.get_text() for text in numbers.texts]
    assert said[0:4] != ["mean", "interval", "n", "p (Holm)"] == said[-4:]
    assert said.count("controls") == 1
    for row in rows[1:]:
        assert row.difference is not None
        assert {f"{row.difference.mean:+.4f}", f"{row.difference.holm:.2g}"} <= set(said)
    assert "5 of 6" in said


def test_equality_within_a_bound_is_said() -> None:
    rows = answer(*grid_of({"eva": 0.0, "igu-lora": 0.03}, noise=0.0005), within=0.01)
    said = {row.method: sentence(row) for row in rows}
    assert said["eva"].startswith("mood, budget r=1: eva is equal to uniform LoRA within 0.01: ")
    assert "by two one-sided tests after Holm's correction, 5 seeds." in said["eva"]
    assert "igu-lora is better than uniform LoRA by +0.03" in said["igu-lora"]
    assert "p equal (Holm)" in markdown(rows)
    # Better, and by less than what counts; and neither.
    rows = answer(*grid_of({"eva": 0.004}, noise=0.0005), within=0.01)
    assert "eva is better than" in sentence(rows[1])
    assert "; the difference is less than 0.01 (p = " in sentence(rows[1])
    rows = answer(*grid_of({"eva": 0.0}, noise=0.02), within=0.001)
    assert "eva is not shown to differ from" in sentence(rows[1])
    assert "; equality within 0.001 is not shown either (p = " in sentence(rows[1])
    with pytest.raises(ComparisonError, match="the bound of equality is -1; allowed: a difference above 0"):
        answer(*grid_of({"eva": 0.0}), within=-1)


def test_what_a_decoder_forgets_is_a_column() -> None:
    cells, results = grid_of({"eva": 0.0}, seeds=2)
    for number, cell in enumerate(cells):
        results[cell] = replace(results[cell], general_text={"loss": 3.1 + number / 10, "base loss": 3.0})
    rows = answer(cells, results)
    assert [cells_of_row(row)["general text"] for row in rows] == ["+0.2000 ± 0.1414", "+0.3000 ± 0.1414"]
    assert general_sentences(rows)[0].startswith("mood: the base model's loss on the general text is 3.0000 a token")
    results[cells[0]] = replace(results[cells[0]], general_text={"loss": 3.1, "base loss": 3.2})
    with pytest.raises(ComparisonError, match="the text changed while the grid was run"):
        answer(cells, results)
