"""The results of an evaluation as tables."""

from collections.abc import Mapping
from typing import Any

from lorank.report.split_table import SplitTable


def task_table(results: Mapping[str, Mapping[str, Any]]) -> SplitTable:
    """A row for each metric of each task: value and standard error of each model.

    Args:
        results: model (`adapter`, `base`) -> its results.

    """
    headings = [heading for name in results for heading in (name, f"{name} stderr")]
    table = SplitTable("lm-eval", ("task", "metric", "shots", "examples", *headings), repeated=2)
    first = next(iter(results.values()))["tasks"]
    for task, found in first.items():
        for metric in found["metrics"]:
            values = [each["tasks"][task]["metrics"][metric] for each in results.values()]
            cells = [_number(value[key]) for value in values for key in ("value", "stderr")]
            table.add_row(task, metric, _count(found["fewshot"]), _count(found["examples"]), *cells)
    return table


def data_table(results: Mapping[str, Mapping[str, Any]]) -> SplitTable:
    """A row for each number on own data, a column for each model.

    Args:
        results: model (`adapter`, `base`) -> its results.

    """
    parts = next(iter(results.values()))["data"]
    table = SplitTable("own data", ("part", "", *results), repeated=2)
    for part, found in parts.items():
        of_part = [each["data"][part] for each in results.values()]
        names = {"loss": "loss", "perplexity": "perplexity", "tokens": "target tokens", "rows": "rows"}
        for key, heading in names.items():
            if key in found:
                shown = _count if key in ("tokens", "rows") else _number
                table.add_row(part, heading, *(shown(each[key]) for each in of_part))
        for metric in found["metrics"]:
            table.add_row(part, metric, *(_number(each["metrics"][metric]) for each in of_part))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
