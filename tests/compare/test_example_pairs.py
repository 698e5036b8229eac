"""Losses in pairs of seeds and examples: what the two-way decomposition is, and that it claims no more than its level."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.compare.made_up import grid_of

from lorank.compare.answer import answer, contrasts, with_losses
from lorank.compare.cells import Cell
from lorank.compare.example_pairs import MeanSquares, compare_losses, loss_differences, read_cell_losses
from lorank.compare.result_table import cells_of_row, markdown, table_of
from lorank.compare.words import loss_sentences
from lorank.errors import ComparisonError
from lorank.tasks.loss_file import LOSSES, write_losses


def drawn(source: np.random.Generator, seeds: int, examples: int, spread: tuple[float, float, float]) -> np.ndarray:
    """Differences without an effect: of seeds, of examples, and of both together."""
    of_seeds, of_examples, rest = (source.normal(0, one, size) for one, size in zip(
        spread, ((seeds, 1), (1, examples), (seeds, examples)), strict=True
    ))  # fmt: skip
    return of_seeds + of_examples + rest


def test_the_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    differences = drawn(np.random.default_rng(0), 3, 20, (1.0, 2.0, 0.5)) + 0.3
    found, mean = MeanSquares.of(differences), differences.mean()
    total = found.between_seeds * 2 + found.between_examples * 19 + found.rest * 38
    assert total == pytest.approx(((differences - mean) ** 2).sum())
    # The variance of a mean with two crossed random parts: (A + B - C) / (S N).
    whole = (found.between_seeds + found.between_examples - found.rest) / 60
    assert sum(found.variances) == pytest.approx(whole)
    one = compare_losses(differences)
    assert one.standard_error == pytest.approx(math.sqrt(whole))
    assert one.low < one.mean < one.high
    assert one.mean == pytest.approx(mean)
    assert found.p_value(one.high - one.mean) == pytest.approx(0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_with_one_source_of_spread_it_is_the_t_test_over_that(seeds: int) -> None:
    source = np.random.default_rng(seeds)
    of_seeds = source.normal(0.5, 1, (seeds, 1)) + source.normal(0, 1e-7, (seeds, 4000))
    assert compare_losses(of_seeds).p == pytest.approx(stats.ttest_1samp(of_seeds.mean(1), 0).pvalue, rel=2e-3)
    of_examples = source.normal(0.03, 1, (1, 4000)) + source.normal(0, 1e-7, (seeds, 4000))
    assert compare_losses(of_examples).p == pytest.approx(stats.ttest_1samp(of_examples.mean(0), 0).pvalue, rel=2e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3, 3.0])
def test_no_more_false_claims_than_the_level(seeds: int, of_seeds: float) -> None:
    """400 grids without an effect, 50 examples; one in which seeds add nothing, some, and nearly everything."""
    source, variances = np.random.default_rng(7), []
    found = []
    for _ in range(400):
        squares = MeanSquares.of(differences := drawn(source, seeds, 50, (of_seeds, 1.0, 1.0)))
        found.append(squares.p_value(abs(differences.mean())))
        cells = squares.seeds * squares.examples
        variances.append((squares.between_seeds + squares.between_examples - squares.rest) / cells)
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)
    true = of_seeds**2 / seeds + 1 / 50 + 1 / (50 * seeds)
    assert np.mean(variances) == pytest.approx(true, rel=0.35)


def test_examples_alone_would_claim_what_is_a_seeds_luck() -> None:
    source, alone, both = np.random.default_rng(1), 0, 0
    for _ in range(200):
        differences = drawn(source, 3, 400, (0.3, 1.0, 1.0))
        alone += stats.ttest_1samp(differences.mean(0), 0).pvalue < 0.05
        both += MeanSquares.of(differences).p_value(abs(differences.mean())) < 0.05
    assert alone > 80
    assert both < 0.05 * 200 + 4 * math.sqrt(0.05 * 0.95 * 200)
    # An effect that is there is found.
    assert compare_losses(drawn(source, 3, 400, (0.02, 1.0, 1.0)) - 0.5).p < 0.01


def test_satterthwaites_degrees_of_freedom_would_claim_too_much_with_two_seeds() -> None:
    source, theirs, ours = np.random.default_rng(2), 0, 0
    for _ in range(600):
        squares = MeanSquares.of(differences := drawn(source, 2, 50, (0.6, 1.0, 0.7)))
        parts = np.array([squares.between_seeds, squares.between_examples, -squares.rest])
        freedom = max(1.0, parts.sum() ** 2 / (parts**2 / np.array([1, 49, 49])).sum())
        size = abs(differences.mean()) / math.sqrt(max(parts.sum(), *parts[:2]) / 100)
        theirs += 2 * stats.t.sf(size, freedom) < 0.05
        ours += squares.p_value(abs(differences.mean())) < 0.05
    assert theirs > 0.09 * 600
    assert ours <= 0.05 * 600 + 4 * math.sqrt(0.05 * 0.95 * 600)


def test_few_and_equal_losses() -> None:
    assert math.isnan(compare_losses(np.ones((1, 9))).p)
    assert math.isnan(compare_losses(np.ones((3, 1))).p)
    same = compare_losses(np.zeros((3, 9)))
    assert (same.mean, same.p, same.claim(0.05)) == (0.0, 1.0, 0)
    assert compare_losses(np.ones((3, 9))).p == 0.25


def test_a_comparison_has_losses_where_cells_have_kept_them(tmp_path: Path) -> None:
    cells, results = grid_of({"igu-lora": 0.0, "eva": 0.0}, seeds=3)
    rows = answer(cells, results)
    assert "loss to uniform LoRA" not in table_of(rows)[0]
    assert read_cell_losses(cells, tmp_path) == {}
    source = np.random.default_rng(0)
    examples = source.gamma(2.0, 0.2, 60)
    for cell in cells:
        mine = examples + source.normal(-0.1 if cell.method == "igu-lora" else 0.0, 0.02, 60)
        if cell != Cell("mood", "r=1", "eva", 2):  # of an earlier version
            order = source.permutation(60)
            write_losses(tmp_path / "cells" / cell.folder / LOSSES, 3 * mine[order], np.full(60, 3), order)
    losses = read_cell_losses(cells, tmp_path)
    assert losses[cells[0]] == pytest.approx(examples, abs=0.1)  # in the order of the rows
    controlled = contrasts(
        answer(*grid_of({"igu-lora": 0.0, "svd-truncate": 0.0})), {("mood", "svd-truncate"): "igu-lora"}
    )
    rows, against = with_losses(rows, controlled, losses)
    assert against[0].losses is None
    found = {row.method: row for row in rows}
    assert found["lora"].losses is None
    assert (found["eva"].losses.seeds, found["igu-lora"].losses.seeds) == (2, 3)  # type: ignore[union-attr]
    assert cells_of_row(found["igu-lora"])["loss to uniform LoRA"].startswith("-0.10")
    assert "loss p (Holm)" in markdown(rows)
    said = loss_sentences(rows)
    assert said[0].startswith("mood, budget r=1: the test loss of igu-lora is lower than that of uniform LoRA by -0.10")
    assert "3 seeds x 60 examples" in said[0]
    assert said[1:] == ["mood, budget r=1: test losses that are not shown to differ from uniform LoRA's: eva."]
    # A method against its own control.
    cut = {replace(cell, method="svd-truncate"): one for cell, one in losses.items() if cell.method == "lora"}
    against = with_losses(rows, controlled, {**losses, **cut})[1]
    assert "igu-lora is lower than that of an adapter cut by singular values by -0.10" in loss_sentences(against)[0]
    pair = ("mood", "r=1", "igu-lora", "lora")
    with pytest.raises(ComparisonError, match="has losses of 59 test examples, lora of 60"):
        loss_differences({**losses, cells[1]: losses[cells[1]][1:]}, [pair])
    # A loss that is not finite leaves its seed out.
    broken = {**losses, replace(cells[0], method="igu-lora"): np.full(60, np.nan)}
    assert loss_differences(broken, [pair])[pair].seeds == 2
