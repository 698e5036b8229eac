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


def counted(numbers: Sequence[int]) -> str:
    """A number, or the least and the most of several."""
    if not numbers:
        return "-"
    least, most = min(numbers), max(numbers)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def cells_of_row(row: Row) -> tuple[str, ...]:
    """A row in words, in the order of the columns."""
    difference = row.difference
    steps, before = row.steps
    name = f"{row.method} (control)" if row.method in CONTROLS and row.method != "full" else row.method
    return (
        name,
        row.metric,
        f"{number(row.mean)} ± {number(row.std)}",
        "-" if difference is None else signed(difference.mean),
        "-"
        if difference is None or math.isnan(difference.low)
        else f"{signed(difference.low)} to {signed(difference.high)}",
        "-" if difference is None else p_written(difference.p),
        "-" if difference is None else p_written(difference.holm),
        f"{len(row.known)}" + (f" of {row.asked}" if len(row.known) < row.asked else ""),
        counted(row.parameters),
        f"{steps:,}" + (f" + {before:,} for the plan" if before else ""),
        number(row.seconds, 0) + (f" + {row.before:.0f}" if row.before > 0 else ""),
        number(row.peak_bytes / 2**30, 2),
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
    return markdown_table(("task", "budget", *_COLUMNS), [(row.task, row.budget, *cells_of_row(row)) for row in rows])


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ("---",) * len(columns), *lines))


def latex(rows: Sequence[Row]) -> str:
    """As a LaTeX tabular with booktabs' rules."""
    lines = [(row.task, row.budget, *cells_of_row(row)) for row in rows]
    return latex_table(("task", "budget", *_COLUMNS), lines, left=3, together=2)


def latex_table(columns: Sequence[str], lines: Sequence[Sequence[str]], *, left: int, together: int) -> str:
    """Any table as LaTeX.

    Args:
        columns: headings.
        lines: a string for each column.
        left: how many columns are aligned to the left.
        together: a rule stands above each change of the first so many columns.

    """
    written = [rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(columns) - left)}}}", r"\toprule"]
    written.append(" & ".join(map(_escaped, columns)) + r" \\")
    seen: Sequence[str] | None = None
    for line in lines:
        if seen != line[:together]:
            written.append(r"\midrule")
        seen = line[:together]
        written.append(" & ".join(map(_escaped, line)) + r" \\")
    return "\n".join([*written, r"\bottomrule", r"\end{tabular}", ""])


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
        costs = (row.asked - len(row.known), row.parameters[1], *row.steps, row.seconds, row.before, row.peak_bytes)
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
        ("Δ", r"$\Delta$"),
        ("<", "$<$"),
    ):
        text = text.replace(plain, written)
    return text


def number(value: float, places: int = 4) -> str:
    """A number with so many places; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.{places}f}"


def signed(value: float) -> str:
    """A difference with its sign; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:+.4f}"


def p_written(value: float) -> str:
    """A p-value; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"
