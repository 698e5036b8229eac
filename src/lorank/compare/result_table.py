"""The table of a comparison: for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence

from rich import box

from lorank.compare.answer import Row
from lorank.compare.cells import CONTROLS
from lorank.report.split_table import SplitTable

_COLUMNS = (
    *("method", "metric", "mean ± std", "to uniform LoRA", "interval", "p", "p (Holm)", "seeds", "parameters"),
    *("steps", "seconds", "peak GB"),
)
_CSV_COLUMNS = (
    *("task", "budget", "method", "metric", "mean", "std", "difference", "low", "high", "p", "p_holm", "pairs"),
    *(
        "seeds_needed",
        "seeds",
        "missing",
        "parameters",
        "steps",
        "steps_before",
        "seconds",
        "seconds_before",
        "peak_bytes",
    ),
)


def cells_of_row(row: Row) -> tuple[str, ...]:
    """A row in words, in the order of the columns."""
    difference = row.difference
    steps, before = row.steps
    name = f"{row.method} (control)" if row.method in CONTROLS and row.method != "full" else row.method
    return (
        name,
        row.metric,
        f"{_number(row.mean)} ± {_number(row.std)}",
        "-" if difference is None else _signed(difference.mean),
        "-"
        if difference is None or math.isnan(difference.low)
        else f"{_signed(difference.low)} to {_signed(difference.high)}",
        "-" if difference is None else _p(difference.p),
        "-" if difference is None else _p(difference.holm),
        f"{len(row.known)}" + (f" of {row.asked}" if len(row.known) < row.asked else ""),
        f"{row.parameters:,}",
        f"{steps:,}" + (f" + {before:,} for the plan" if before else ""),
        _number(row.seconds, 0) + (f" + {row.before:.0f}" if row.before > 0 else ""),
        _number(row.peak_bytes / 2**30, 2),
    )


def terminal_tables(rows: Sequence[Row]) -> list[SplitTable]:
    """For the terminal: a table for each task and budget; p-values are those after Holm's correction."""
    shown = [name for name in _COLUMNS if name not in ("metric", "p", "steps")]
    tables: dict[tuple[str, str], SplitTable] = {}
    for row in rows:
        title = f"{row.task}, {row.budget}: {row.metric}"
        table = tables.setdefault((row.task, row.budget), SplitTable(title, shown, frame=box.SIMPLE_HEAD))
        cells = dict(zip(_COLUMNS, cells_of_row(row), strict=True))
        table.add_row(*(cells[name] for name in shown))
    return list(tables.values())


def markdown(rows: Sequence[Row]) -> str:
    """As a Markdown table."""
    lines = [("task", "budget", *_COLUMNS), ("---",) * (2 + len(_COLUMNS))]
    lines += [(row.task, row.budget, *cells_of_row(row)) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(rows: Sequence[Row]) -> str:
    """As a LaTeX tabular with booktabs' rules."""
    columns = ("task", "budget", *_COLUMNS)
    lines = [
        rf"\begin{{tabular}}{{lll{'r' * (len(columns) - 3)}}}",
        r"\toprule",
        " & ".join(map(_escaped, columns)) + r" \\",
    ]
    seen: tuple[str, str] | None = None
    for row in rows:
        if seen != (row.task, row.budget):
            lines.append(r"\midrule")
        seen = (row.task, row.budget)
        lines.append(" & ".join(map(_escaped, (row.task, row.budget, *cells_of_row(row)))) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(rows: Sequence[Row]) -> str:
    """As CSV with plain numbers, one line for each row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in rows:
        one = row.difference
        numbers = (
            ("",) * 7 if one is None else (one.mean, one.low, one.high, one.p, one.holm, one.pairs, one.seeds_needed)
        )
        values = (row.task, row.budget, row.method, row.metric, row.mean, row.std, *numbers, len(row.known))
        costs = (row.asked - len(row.known), row.parameters, *row.steps, row.seconds, row.before, row.peak_bytes)
        writer.writerow(["" if value is None or value != value else value for value in (*values, *costs)])
    return text.getvalue()


def _escaped(text: str) -> str:
    for plain, written in (
        ("\\", r"\textbackslash{}"),
        ("_", r"\_"),
        ("%", r"\%"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("±", r"$\pm$"),
        ("<", "$<$"),
    ):
        text = text.replace(plain, written)
    return text


def _number(value: float, places: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.4f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"
