"""What the engines would make of an adapter: a table for the terminal, and its numbers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box

from lorank.report.split_table import SplitTable
from lorank.serving.verify import Verdict

_STYLES = {"right": "green", "unknown": "yellow", "wrong": "red", "refused": "red"}


def verdict_table(verdicts: Sequence[Verdict]) -> SplitTable:
    """One row for each engine: the answer; the largest relative error of `ΔW`; what to set, or why not."""
    reasons = "settings, or why not"
    columns = ("engine", "it would be", "error", reasons)
    table = SplitTable(None, columns, repeated=2, prose=(reasons,), frame=box.SIMPLE_HEAD)
    for verdict in verdicts:
        error = f"{verdict.error:.1e}" if _is_known(verdict) else "-"
        table.add_row(
            verdict.label, verdict.answer, error, verdict.why or verdict.settings, style=_STYLES[verdict.answer]
        )
    return table


def verdict_numbers(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """What the table shows: `engine`, `answer`, `right`, `error` (None where the table has none), `worst` module, ..."""
    return [{**asdict(one), "right": one.right, "error": one.error if _is_known(one) else None} for one in verdicts]


def _is_known(verdict: Verdict) -> bool:
    """Whether the error says something: where something else than a scale is wrong, that of the updates would mislead."""
    return verdict.error is not None and not verdict.why.startswith("modules trained whole")
