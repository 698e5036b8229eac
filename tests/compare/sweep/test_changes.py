"""Differences of named variants: the paper's own figures, pairs of seeds, Holm's correction, plain words."""

import math
from pathlib import Path
from statistics import fmean

import pytest
from scipy import stats
from tests.compare.made_up import measured

from lorank.compare.answer import Row, answer
from lorank.compare.cells import Cell
from lorank.compare.sweep.changes import Change, change_in_words, changes, points, relative_change
from lorank.compare.sweep.run_sweep import check_equal_variants, notes
from lorank.compare.sweep.variants import Sweep, Variant
from lorank.errors import ComparisonError

# I-LoRA's Table 3: CoLA, RTE, MRPC, in percent.
TABLE_3 = {
    "full": (71.84, 88.44, 93.57),
    "no second stage": (68.87, 85.06, 90.48),
    "training data": (69.76, 85.92, 93.45),
    "no path": (69.73, 87.00, 92.77),
}


def sweep_of(
    names: list[str], recipes: tuple[str, ...] = ("cola", "rte", "mrpc"), seeds: int = 1, *set_by: str
) -> Sweep:
    variants = tuple(Variant(name, set_by if number else (), f"v{number}") for number, name in enumerate(names))
    contents = {f"{recipe}/{one.folder}": {"budget": "keep=50%"} for recipe in recipes for one in variants}
    return Sweep(
        contents, ("keep=50%",), ("i-lora",), tuple(range(seeds)), {}, Path("x"), recipes=recipes, variants=variants
    )


def cell(recipe: str, number: int, seed: int = 0) -> Cell:
    return Cell(f"{recipe}/v{number}", "keep=50%", "i-lora", seed)


def of_values(sweep: Sweep, values: dict[Cell, float | None]) -> tuple[list[Row], list[Change]]:
    rows = answer(sweep.cells(), {one: measured(value) for one, value in values.items()})
    return rows, changes(sweep, rows)


def test_a_relative_change_is_a_share_of_the_reference() -> None:
    assert round(100 * relative_change(84.62, 81.47), 2) == -3.72
    assert points(0.8147 - 0.8462) == pytest.approx(-3.15)
    assert math.isnan(relative_change(0.0, 0.1))
    assert math.isnan(relative_change(-0.2, 0.1))  # a correlation below 0 is no whole to take a share of


def test_the_deltas_of_table_3_follow_from_its_columns() -> None:
    sweep = sweep_of(list(TABLE_3))
    values = {
        cell(recipe, number): value / 100
        for number, row in enumerate(TABLE_3.values())
        for recipe, value in zip(sweep.recipes, row, strict=True)
    }
    _, found = of_values(sweep, values)
    assert [round(100 * one.mean, 2) for one in found] == [84.62, 81.47, 83.04, 83.17]
    assert found[0].difference is None
    assert [round(points(one.difference.mean), 2) for one in found[1:]] == [-3.15, -1.57, -1.45]  # type: ignore[union-attr]
    assert [round(100 * one.relative, 2) for one in found[1:]] == [-3.72, -1.86, -1.71]
    # One seed shows nothing, whatever the size.
    assert change_in_words(sweep, found[1]) == "no second stage cannot be compared: 1 seed in common with full."


def test_differences_are_of_means_over_tasks_in_pairs_of_seeds_and_corrected() -> None:
    sweep = sweep_of(["full", "one", "other"], ("cola", "rte"), 5)
    values: dict[Cell, float | None] = {}
    for seed in range(5):
        luck, own = (0.0, 0.03, -0.02, 0.05, 0.01)[seed], (0.002, -0.001, 0.0, 0.001, -0.002)[seed]
        for number, effect in enumerate((0.0, -0.05, own)):
            values[cell("cola", number, seed)] = 0.6 + luck + effect
            values[cell("rte", number, seed)] = 0.8 - luck / 2 + effect + own * number
    values[cell("rte", 2, 4)] = None  # a metric that is not defined
    _, found = of_values(sweep, values)

    def mean(number: int, seed: int) -> float:
        return fmean([values[cell(task, number, seed)] or 0.0 for task in ("cola", "rte")])

    pairs = {1: range(5), 2: range(4)}
    by_hand = {
        number: [stats.ttest_rel([mean(number, s) for s in seeds], [mean(0, s) for s in seeds]).pvalue]
        for number, seeds in pairs.items()
    }
    for number, seeds in pairs.items():
        one, reference = found[number], fmean(mean(0, seed) for seed in seeds)
        difference = fmean(mean(number, seed) - mean(0, seed) for seed in seeds)
        assert one.difference is not None
        assert one.difference.mean == pytest.approx(difference)
        assert one.relative == pytest.approx(difference / reference)
        assert one.difference.p == pytest.approx(by_hand[number][0])
    assert found[1].difference.holm == pytest.approx(2 * by_hand[1][0])  # type: ignore[union-attr]
    said = [change_in_words(sweep, one) for one in found]
    assert said[0] == f"full is what the others are compared with (mean of 2 tasks {found[0].mean:.4f})."
    assert said[1].startswith("one is worse than full by -5.0")
    assert "points (bootstrap interval" in said[1]
    assert "% of its mean of 2 tasks; p = " in said[1]
    assert said[2].startswith("other is not shown to differ from full: ")
    assert "(1 of 5 have no value and are left out)" in said[2]


def test_what_no_variant_names_has_to_be_equal() -> None:
    sweep = sweep_of(["full", "smoothed"], ("cola",), 1, "smooth.window=2")
    first, second = cell("cola", 0), cell("cola", 1)
    check_equal_variants(sweep, {first: measured(0.5), second: measured(0.6)})
    for options, said in (({"steps": 11}, "steps"), ({"data": {"train": "a", "test": "c"}}, "data")):
        with pytest.raises(ComparisonError, match=f"differ in {said}, which smoothed does not set"):
            check_equal_variants(sweep, {first: measured(0.5), second: measured(0.6, **options)})
    # What a variant names may differ, and is said.
    longer = sweep_of(["full", "longer"], ("cola",), 1, "train.max_steps=11", "data.max_length=8")
    results = {first: measured(0.5), second: measured(0.6, steps=11, parameters=400, data={"train": "c", "test": "b"})}
    check_equal_variants(longer, results)
    assert notes(longer, answer(longer.cells(), results), results) == [
        "full: the recipe as it is",
        "longer: train.max_steps=11 data.max_length=8",
        "cola: steps of the training that is judged: full 10; longer 11",
        "cola: adapter parameters: full 448; longer 400",
        "cola: variants have other data: train",
    ]
