"""The table of a sweep: for the terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box

from lorank.compare.answer import Row
from lorank.compare.cells import BASELINE
from lorank.compare.result_table import counted, latex_table, number, p_written, signed
from lorank.compare.statistics import Difference
from lorank.compare.sweep.changes import Change, points
from lorank.compare.sweep.variants import Sweep
from lorank.report.markdown import plain_table
from lorank.report.split_table import SplitTable

_CSV_COLUMNS = (
    *("task", "variant", "method", "budget", "metric", "mean", "std", "seeds", "missing", "parameters", "steps"),
    *("difference", "difference_points", "difference_relative", "low", "high", "p", "p_holm", "pairs", "seeds_needed"),
)


@dataclass(frozen=True)
class Table:
    """Strings to be shown.

    Attributes:
        columns: headings.
        lines: a string for each column.
        left: how many columns say what a line is about.
        title: for the terminal.

    """

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left: int
    title: str


def sweep_table(sweep: Sweep, rows: Sequence[Row], changes: Sequence[Change]) -> Table:
    """Values of a key as lines and methods as columns; or named variants as lines and tasks as columns."""
    return _of_variants(sweep, rows, changes) if sweep.key is None else _of_values(sweep, rows, sweep.key)


def _of_values(sweep: Sweep, rows: Sequence[Row], key: str) -> Table:
    methods = list(dict.fromkeys(row.method for row in rows))
    compared = [name for name in methods if name != BASELINE] if BASELINE in methods else []
    columns = ("task", "metric", key, "parameters", *methods, "seeds")
    columns += tuple(heading for name in compared for heading in (f"{name} to {BASELINE}", "p (Holm)"))
    lines = []
    for recipe in sweep.recipes:
        for variant in sweep.variants:
            mine = {row.method: row for row in rows if row.task == sweep.task(recipe, variant)}
            tested = [mine[name].difference for name in compared]
            differences = [
                text
                for one in tested
                for text in (("-", "-") if one is None else (signed(one.mean), p_written(one.holm)))
            ]
            one = next(iter(mine.values()))
            parameters = counted([n for row in mine.values() if row.known for n in row.parameters])
            values = [_value(mine[name]) for name in methods]
            seeds = _seeds([(len(row.known), row.asked) for row in mine.values()])
            lines.append((recipe, one.metric, variant.name, parameters, *values, seeds, *differences))
    return Table(columns, tuple(lines), 3, f"over {key}")


def _of_variants(sweep: Sweep, rows: Sequence[Row], changes: Sequence[Change]) -> Table:
    at = {row.task: row for row in rows}
    first = [at[sweep.task(recipe, sweep.variants[0])] for recipe in sweep.recipes]
    tasks = [f"{recipe} ({row.metric})" for recipe, row in zip(sweep.recipes, first, strict=True)]
    several = ("mean",) if len(tasks) > 1 else ()
    columns = ("variant", *tasks, *several, "Δ points", "Δ relative", "interval (points)", "p", "p (Holm)", "seeds")
    lines = []
    for variant, one in zip(sweep.variants, changes, strict=True):
        mine = [at[sweep.task(recipe, variant)] for recipe in sweep.recipes]
        known = [value for value in one.means.values() if value is not None]
        mean = (f"{number(one.mean)} ± {number(one.std)}",) if several else ()
        seeds = _seeds([(len(known), len(one.means))])
        lines.append((one.variant, *map(_value, mine), *mean, *_differences(one), seeds))
    return Table(columns, tuple(lines), 1, "variants")


def _differences(one: Change) -> tuple[str, ...]:
    found = one.difference
    if found is None or math.isnan(found.mean):
        return ("-",) * 5
    interval = "-" if math.isnan(found.low) else f"{points(found.low):+.2f} to {points(found.high):+.2f}"
    relative = "-" if math.isnan(one.relative) else f"{100 * one.relative:+.2f} %"
    return (f"{points(found.mean):+.2f}", relative, interval, p_written(found.p), p_written(found.holm))


def markdown(table: Table) -> str:
    """As a Markdown table."""
    return plain_table(table.columns, table.lines)


def latex(table: Table) -> str:
    """As a LaTeX tabular with booktabs' rules."""
    return latex_table(table.columns, table.lines, left=table.left, together=table.left // 2)


def terminal_table(table: Table) -> SplitTable:
    """For the terminal."""
    shown = SplitTable(table.title, table.columns, repeated=table.left, frame=box.SIMPLE_HEAD)
    for line in table.lines:
        shown.add_row(*line)
    return shown


def comma_separated(sweep: Sweep, rows: Sequence[Row], changes: Sequence[Change]) -> str:
    """As CSV with plain numbers: a line for each task, variant and method; for named variants, the means over tasks too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    names = {
        sweep.task(recipe, variant): (recipe, variant.name) for recipe in sweep.recipes for variant in sweep.variants
    }
    with_lora = sweep.key is not None and BASELINE in sweep.methods
    for row in rows:
        tested = _numbers_of(row.difference if with_lora else None, math.nan)
        counts = (len(row.known), row.asked - len(row.known), row.parameters[1], row.steps[0])
        writer.writerow(
            _plain((*names[row.task], row.method, row.budget, row.metric, row.mean, row.std, *counts, *tested))
        )
    for one in changes:
        known = [value for value in one.means.values() if value is not None]
        means = ("mean", one.variant, "", "", "", one.mean, one.std, len(known), len(one.means) - len(known), "", "")
        writer.writerow(_plain((*means, *_numbers_of(one.difference, one.relative))))
    return text.getvalue()


def _numbers_of(one: Difference | None, relative: float) -> tuple[object, ...]:
    if one is None:
        return ("",) * 9
    sizes = (one.mean, points(one.mean), relative, one.low, one.high)
    return (*sizes, one.p, one.holm, one.pairs, one.seeds_needed)


def _plain(values: Sequence[object]) -> list[object]:
    return ["" if value is None or value != value else value for value in values]


def _value(row: Row) -> str:
    return f"{number(row.mean)} ± {number(row.std)}"


def _seeds(counts: Sequence[tuple[int, int]]) -> str:
    known, asked = counted([known for known, _ in counts]), max(asked for _, asked in counts)
    return known if known == f"{asked}" else f"{known} of {asked}"
