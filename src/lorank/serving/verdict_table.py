"""What the engines would make of an adapter, as a table for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from lorank.serving.verify import Verdict


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each engine: right, wrong or refused; the largest relative error of `ΔW`; what to set, or why not."""
    table = Table(title="what each engine would compute", title_justify="left")
    table.add_column("engine", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("largest error", justify="right", no_wrap=True)
    table.add_column("settings, or why not", overflow="fold")
    for verdict in verdicts:
        said = "right" if verdict.right else "refused" if verdict.error is None else "wrong"
        style = "green" if verdict.right else "red"
        error = "-" if verdict.error is None else f"{verdict.error:.1e}"
        table.add_row(
            verdict.label, said, error, verdict.why.removeprefix("refused: ") or verdict.settings, style=style
        )
    return table
