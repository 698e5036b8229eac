from typing import Any

import numpy as np
from rich.console import Console

from lorank.plan import RankPlan
from lorank.report.tables import (
    change_table,
    quadrature_lines,
    result_table,
    score_table,
    stability_lines,
)
from lorank.scores import ImportanceScores

NAMES = ("layer.0.query", "layer.0.output", "layer.1.query", "layer.1.output")


def shown(table: Any) -> str:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def plan(*ranks: int, budget: int = 1000, **provenance: Any) -> RankPlan:
    return RankPlan(
        dict(zip(NAMES, ranks, strict=True)), dict.fromkeys(NAMES, 10), str(budget), budget, 2.0, provenance
    )


def test_scores_are_shown_as_shares_and_what_is_below_zero_as_none() -> None:
    values = {name: np.array([score]) for name, score in zip(NAMES, (1.0, -2.0, 3.0, 0.0), strict=True)}
    text = shown(score_table(ImportanceScores(values, dict.fromkeys(NAMES, 10))))
    for cell in ("25.0", "75.0", "0.0"):
        assert cell in text


def test_changes_from_plan_to_plan() -> None:
    text = shown(change_table([plan(1, 1, 0, 0), plan(4, 1, 0, 1, budget=2000)]))
    first, second = [line for line in text.splitlines() if "│ 1000" in line or "│ 2000" in line]
    assert [cell.strip() for cell in first.split("│")[1:8]] == ["1000", "1,000", "20", "2", "1", "2", "-"]
    assert [cell.strip() for cell in second.split("│")[1:8]] == ["2000", "2,000", "60", "6", "4", "1", "2"]
    assert "layer.0.query +3" in second


def test_plans_that_do_not_change_say_so() -> None:
    assert "+0" not in shown(change_table([plan(1, 1, 1, 1), plan(1, 1, 1, 1)]))


def test_stability_in_words() -> None:
    found = {
        "halves": {"spearman": None, "changed_modules": 3, "moved_share": 0.125},
        "bootstrap": {
            "draws": 32,
            "spearman": 0.5,
            "changed_modules": 1,
            "moved_share": 0.0,
            "worst_moved_share": 0.25,
        },
    }
    halves, draws = stability_lines(plan(1, 1, 1, 1, stability=found))
    assert "not defined, 3 of 4 ranks differ, 12.5 % of parameters move" in halves
    assert "32 bootstrap draws" in draws
    assert "0.500, 1 of 4 ranks" in draws
    assert "25.0 % at the 95th percentile" in draws
    assert stability_lines(plan(1, 1, 1, 1)) == []
    few = {"bootstrap": {**found["bootstrap"], "moved_share": 0.11}}
    small = stability_lines(plan(1, 1, 1, 1, stability=few))[-1]
    assert small.startswith(
        "the calibration set is small for this plan: other examples would have moved more than 10 %"
    )
    told = stability_lines(
        plan(1, 1, 1, 1, groups={"vision": {"modules": 4, "stability": found}, "text": {"modules": 0}})
    )
    assert told == [f"group vision, {line}" for line in (halves, draws)]


def test_quadrature_lines_name_both_numbers_as_estimates() -> None:
    check = {"intervals": 8, "richardson_estimate": 0.0041, "bound_estimate": 0.0234}
    (line,) = quadrature_lines(plan(1, 1, 1, 1, quadrature=check))
    assert "8 intervals on one batch: estimated error 0.41 % (Richardson), estimated upper bound 2.3 % (" in line
    (line,) = quadrature_lines(plan(1, 1, 1, 1, quadrature={**check, "bound_estimate": None}))
    assert "estimated upper bound not defined" in line
    assert quadrature_lines(plan(1, 1, 1, 1, quadrature=None)) == quadrature_lines(plan(1, 1, 1, 1)) == []


def test_what_came_before_training_is_shown() -> None:
    usual = {"metrics": {"accuracy": 0.5}, "adapter_parameters": 40, "steps": 9, "seconds": 2.0}
    results = {
        "sensitivity-lora": usual | {"calibration": {"examples": 256, "seconds": 2.71}},
        "i-lora": usual | {"search": {"steps": 7, "passes": 3, "seconds": 5.0}},
        "of an earlier version": usual | {"stage1": {"steps": 8, "passes": 4, "seconds": 5.0}},
        "lora": usual,
    }
    text = shown(result_table(results, 40))
    assert "256 examples scored, 2.7 s" in text
    assert "7 steps + 3 scoring passes, 5 s" in text
    assert "8 steps + 4 scoring passes, 5 s" in text


def test_what_each_method_was_asked_for() -> None:
    """In units where the budget counts these, its own where a baseline has one, nothing for full fine-tuning."""
    one = {"metrics": {"a": 1.0}, "adapter_parameters": 5, "steps": 1, "seconds": 2.0}
    full = {key: value for key, value in one.items() if key != "adapter_parameters"} | {"trained_parameters": 900}
    results = {"i-lora": one, "eva": one, "lora": {**one, "budget": "r=2"}, "full": full}
    rows = [line.split("│") for line in shown(result_table(results, 5, 3)).splitlines() if "1 steps" in line]
    assert [row[2].strip() for row in rows] == ["3 units", "5", "r=2", "-"]
