"""What the engines would make of an adapter, as a table for the terminal."""

from collections.abc import Sequence

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
        # Where something else than a scale is wrong, the error of the updates would mislead.
        known = verdict.error is not None and not verdict.why.startswith("modules trained whole")
        error = f"{verdict.error:.1e}" if known else "-"
        table.add_row(
            verdict.label, verdict.answer, error, verdict.why or verdict.settings, style=_STYLES[verdict.answer]
        )
    return table
