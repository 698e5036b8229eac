"""What the engines would make of an adapter, as a table for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from lorank.serving.verify import Verdict

_STYLES = {"right": "green", "unknown": "yellow", "wrong": "red", "refused": "red"}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each engine: the answer; the largest relative error of `ΔW`; what to set, or why not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("it would be", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("settings, or why not")
    for verdict in verdicts:
        # Where something else than a scale is wrong, the error of the updates would mislead.
        known = verdict.error is not None and not verdict.why.startswith("modules trained whole")
        error = f"{verdict.error:.1e}" if known else "-"
        table.add_row(
            verdict.label, verdict.answer, error, escape(verdict.why or verdict.settings), style=_STYLES[verdict.answer]
        )
    return table
