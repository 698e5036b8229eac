"""The table of a comparison: for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
import statistics
from collections.abc import Sequence

from rich import box

from lorank.compare.answer import Row
from lorank.compare.cells import CONTROLS
from lorank.compare.over_tasks import COLUMNS as OVER_TASKS
from lorank.compare.over_tasks import OverTasks
from lorank.compare.statistics import Difference
from lorank.report.markdown import plain_table
from lorank.report.split_table import SplitTable

_CSV_COLUMNS = (
    *("task", "budget", "method", "metric", "mean", "std", "difference", "low", "high", "p", "p_holm", "pairs"),
    *("seeds_needed", "seeds", "missing", "parameters", "steps", "steps_before", "seconds", "seconds_before"),
    *("peak_bytes", "equal_within", "p_equal_holm", "loss", "loss_difference", "loss_low", "loss_high", "loss_p_holm"),
    *("loss_standard_error", "examples", "general_text_change", "not_beaten"),
)
# What the terminal leaves out: titles say the metric, Markdown has the rest.
_NOT_IN_TERMINAL = ("metric", "p", "steps", "loss interval")


def counted(numbers: Sequence[int]) -> str:
    """A number, or the least and the most of several."""
    if not numbers:
        return "-"
    least, most = min(numbers), max(numbers)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def table_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings, and a string for each of them for every row; columns in which no row has anything are left out."""
    lines = [cells_of_row(row) for row in rows]
    always = {"method", "metric", "mean ± std", "to uniform LoRA", "interval", "p", "p (Holm)", "seeds", "parameters"}
    always |= {"steps", "seconds", "peak GB"}
    names = [name for name in lines[0] if name in always or any(line[name] != "-" for line in lines)] if lines else []
    return tuple(names), [tuple(line[name] for name in names) for line in lines]


def cells_of_row(row: Row) -> dict[str, str]:
    """A row in words: heading -> string, in the order of the columns; a dash where there is nothing."""
    steps, before = row.steps
    control = row.method in CONTROLS and row.method != "full"
    changes = list(row.forgotten.values())
    spread = f" ± {statistics.stdev(changes):.4f}" if len(changes) > 1 else ""
    return {
        "method": f"{row.method} (control)" if control else row.method,
        "metric": row.metric,
        "mean ± std": f"{number(row.mean)} ± {number(row.std)}",
        **_difference_cells(row.difference),
        **_loss_cells(row),
        "general text": f"{signed(statistics.fmean(changes))}{spread}" if changes else "-",
        "seeds": f"{len(row.known)}" + (f" of {row.asked}" if len(row.known) < row.asked else ""),
        "parameters": counted(row.parameters),
        "steps": f"{steps:,}" + (f" + {before:,} for the plan" if before else ""),
        "seconds": number(row.seconds, 0) + (f" + {row.before:.0f}" if row.before > 0 else ""),
        "peak GB": number(row.peak_bytes / 2**30, 2),
        "not beaten": "-" if row.not_beaten is None else "yes" if row.not_beaten else "no",
    }


def _difference_cells(difference: Difference | None) -> dict[str, str]:
    one = difference
    return {
        "to uniform LoRA": "-" if one is None else signed(one.mean),
        "interval": "-" if one is None else interval(one.low, one.high),
        "p": "-" if one is None else p_written(one.p),
        "p (Holm)": "-" if one is None else p_written(one.holm),
        "p equal (Holm)": "-" if one is None else p_written(one.holm_equal),
    }


def _loss_cells(row: Row) -> dict[str, str]:
    one = row.losses
    return {
        "test loss": number(row.loss),
        "loss to uniform LoRA": "-" if one is None else signed(one.mean),
        "loss interval": "-" if one is None else interval(one.low, one.high),
        "loss p (Holm)": "-" if one is None else p_written(one.holm),
    }


def terminal_tables(rows: Sequence[Row]) -> list[SplitTable]:
    """For the terminal: a table for each task and budget; p-values are those after Holm's correction."""
    names, lines = table_of(rows)
    shown = [name for name in names if name not in _NOT_IN_TERMINAL]
    tables: dict[tuple[str, str], SplitTable] = {}
    for row, line in zip(rows, lines, strict=True):
        title = f"{row.task}, {row.budget}: {row.metric}"
        table = tables.setdefault((row.task, row.budget), SplitTable(title, shown, frame=box.SIMPLE_HEAD))
        cells = dict(zip(names, line, strict=True))
        table.add_row(*(cells[name] for name in shown))
    return list(tables.values())


def markdown(rows: Sequence[Row]) -> str:
    """As a Markdown table."""
    names, lines = table_of(rows)
    written = [(row.task, row.budget, *line) for row, line in zip(rows, lines, strict=True)]
    return plain_table(("task", "budget", *names), written)


def latex(rows: Sequence[Row]) -> str:
    """As a LaTeX tabular with booktabs' rules."""
    names, lines = table_of(rows)
    written = [(row.task, row.budget, *line) for row, line in zip(rows, lines, strict=True)]
    return latex_table(("task", "budget", *names), written, left=3, together=2)


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
        one, losses, changes = row.difference, row.losses, list(row.forgotten.values())
        numbers = (
            ("",) * 7 if one is None else (one.mean, one.low, one.high, one.p, one.holm, one.pairs, one.seeds_needed)
        )
        costs = (row.parameters[1], *row.steps, row.seconds, row.before, row.peak_bytes)
        equal = ("",) * 2 if one is None else (one.within, one.holm_equal)
        by_example = (
            ("",) * 6
            if losses is None
            else (losses.mean, losses.low, losses.high, losses.holm, losses.standard_error, losses.examples)
        )
        values = (
            *(row.task, row.budget, row.method, row.metric, row.mean, row.std, *numbers, len(row.known)),
            *(row.asked - len(row.known), *costs, *equal, row.loss, *by_example),
            *(statistics.fmean(changes) if changes else "", row.not_beaten),
        )
        writer.writerow(["" if value is None or value != value else value for value in values])
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


def interval(low: float, high: float) -> str:
    """Both ends; a dash for NaN."""
    return "-" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def p_written(value: float) -> str:
    """A p-value; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"


def over_tasks_lines(found: Sequence[OverTasks], asked: int) -> list[tuple[str, ...]]:
    """Budget and the columns of `lorank.compare.over_tasks.COLUMNS`, a string each.

    Args:
        found: of `over_tasks`.
        asked: seeds of the grid.

    """
    lines: list[tuple[str, ...]] = []
    for one in found:
        difference, above = one.difference, "-" if one.difference is None else f"{one.above} of {len(one.tasks)}"
        cells, pairs = _difference_cells(difference), asked if difference is None else difference.pairs
        seeds = f"{pairs}" + (f" of {asked}" if pairs < asked else "")
        tasks = f"{len(one.tasks)}" + (f" of {one.of}" if len(one.tasks) < one.of else "")
        shown = (cells["to uniform LoRA"], cells["interval"], cells["p (Holm)"], seeds, above)
        lines.append((one.budget, one.method, *shown, number(one.mean_rank, 2), tasks))
    return lines


def over_tasks_table(found: Sequence[OverTasks], asked: int) -> SplitTable:
    """For the terminal: a line for each budget and method over all tasks."""
    table = SplitTable("all tasks, metrics as they are", ("budget", *OVER_TASKS), frame=box.SIMPLE_HEAD)
    for line in over_tasks_lines(found, asked):
        table.add_row(*line)
    return table
