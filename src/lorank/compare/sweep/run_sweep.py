"""`lorank sweep`: run variants of recipes, or continue them, and write their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lorank.artefact import json_values, write_json, write_text
from lorank.budget import Budget
from lorank.compare.answer import Row, answer
from lorank.compare.cells import BASELINE, Cell, Measured
from lorank.compare.compare import check_metrics, record
from lorank.compare.launch import Launch
from lorank.compare.learning_rate import rates_in_words, searched
from lorank.compare.result_table import counted
from lorank.compare.run_grid import run_grid
from lorank.compare.statistics import Test
from lorank.compare.sweep.changes import Change, change_in_words, changes
from lorank.compare.sweep.line_plot import draw_line_plot
from lorank.compare.sweep.table import comma_separated, latex, markdown, sweep_table
from lorank.compare.sweep.variants import Sweep, Variant
from lorank.compare.words import sentence
from lorank.errors import ComparisonError


@dataclass(frozen=True)
class SweepResult:
    """A sweep that has been run.

    Attributes:
        rows: one for each variant of a recipe, and method.
        changes: one for each named variant; empty for a sweep over a key.
        sentences: what can be said of each difference, in words.
        notes: what variants set, and what differs between them besides.
        failed: cells without a result, and why.
        folder: where the tables are.

    """

    rows: tuple[Row, ...]
    changes: tuple[Change, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    failed: Mapping[Cell, str]
    folder: Path


def run_sweep(
    sweep: Sweep,
    *,
    processes: int = 1,
    tries: int = 2,
    level: float = 0.05,
    test: Test = "t",
    metrics: Mapping[str, str] | None = None,
    search: Sequence[float] | None = None,
    console: Console | None = None,
    launch: Launch | None = None,
) -> SweepResult:
    """Run what is left of a sweep, and write its table, its reading and, over a key, its picture into the sweep's folder.

    Args:
        sweep: what is run.
        processes: cells at a time.
        tries: for each cell.
        level: of claims and intervals.
        test: "t" or "wilcoxon".
        metrics: task -> what it is judged by; None: the first of its metrics.
        search: factors of the learning rate of each variant and method, as in `compare_recipes`; None: no search.
        console: for one line a cell.
        launch: as in `run_grid`.

    Raises:
        LorankError: as `run_grid`, `searched` and `answer`; or variants that differ in what they do not name.

    """
    check_metrics(sweep, metrics or {})
    if search is not None:
        sweep = searched(
            sweep, search, metrics=metrics, processes=processes, tries=tries, console=console, launch=launch
        )
    results = run_grid(sweep, processes=processes, tries=tries, console=console, launch=launch)
    check_equal_variants(sweep, results)
    rows = answer(sweep.cells(), results, metrics=metrics, level=level, test=test)
    changed = changes(sweep, rows, level=level, test=test) if sweep.key is None else []
    if sweep.key is None:
        said = [change_in_words(sweep, one, level) for one in changed]
    else:
        tested = [row for row in rows if row.difference is not None]
        said = [sentence(row, level) for row in tested] if BASELINE in sweep.methods else []
    made = SweepResult(
        tuple(rows), tuple(changed), tuple(said), tuple(notes(sweep, rows, results)), sweep.errors(), sweep.folder
    )
    write_sweep(sweep, results, made, level=level, test=test)
    return made


# Sections of a recipe that decide what the judged training goes through; `expert` holds options of them too.
_CHANGE_STEPS = {"train", "data", "method", "preset", "start", "measure", "expert"}


def check_equal_variants(sweep: Sweep, results: Mapping[Cell, Measured]) -> None:
    """Refuse variants that differ in what none of them names: data, or steps of the training that is judged.

    Raises:
        ComparisonError: names the two cells.

    """
    for recipe in sweep.recipes:
        for variant in sweep.variants[1:]:
            named = variant.sections | sweep.variants[0].sections
            for (cell, one), (other, theirs) in _pairs(sweep, results, recipe, variant):
                differs = [
                    *(["data"] if "data" not in named and one.data != theirs.data else []),
                    *(["steps"] if not named & _CHANGE_STEPS and one.steps != theirs.steps else []),
                ]
                if differs:
                    raise ComparisonError(
                        f"{cell.folder} and {other.folder} differ in {' and '.join(differs)}, which {variant.name} does not set; "
                        "remove the wrong one's folder and run the sweep again"
                    )


def _pairs(
    sweep: Sweep, results: Mapping[Cell, Measured], recipe: str, variant: Variant
) -> list[tuple[tuple[Cell, Measured], tuple[Cell, Measured]]]:
    """Cells of a variant with those of the first one, of one seed and, over a key, one method."""
    mine, first = sweep.task(recipe, variant), sweep.task(recipe, sweep.variants[0])
    return [
        ((cell, one), (other, theirs))
        for cell, one in results.items()
        if cell.task == mine
        for other, theirs in results.items()
        if other.task == first and other.seed == cell.seed and (sweep.key is None or other.method == cell.method)
    ]


def notes(sweep: Sweep, rows: Sequence[Row], results: Mapping[Cell, Measured]) -> list[str]:
    """What stands below the table: what variants set, and what differs between them besides."""
    found = []
    if sweep.key is None:
        found += [f"{one.name}: {' '.join(one.overrides) or 'the recipe as it is'}" for one in sweep.variants]
    elif any(Budget.parse(budget).counts_units for budget in sweep.budgets) and "initial_rank" in sweep.key:
        found.append(
            f"the budget ({', '.join(sweep.budgets)}) is a share of the initial ranks, so it follows {sweep.key}"
        )
    for recipe in sweep.recipes:
        mine = [(one, row) for one in sweep.variants for row in rows if row.task == sweep.task(recipe, one)]
        done = [
            (f"{one.name}" if sweep.key is None else f"{row.method} at {one.name}", row)
            for one, row in mine
            if row.known
        ]
        steps = {name: f"{row.steps[0]:,}" for name, row in done}
        if len(set(steps.values())) > 1:
            found.append(f"{recipe}: steps of the training that is judged: {_listed(steps)}")
        parameters = {name: counted(row.parameters) for name, row in done}
        if sweep.key is None:  # over a key they are a column
            same = len(set(parameters.values())) == 1
            if parameters:
                found.append(
                    f"{recipe}: adapter parameters: {next(iter(parameters.values())) if same else _listed(parameters)}"
                )
        parts = {part for one in results.values() for part in one.data}
        other = [
            part
            for part in sorted(parts)
            if len({one.data.get(part) for cell, one in results.items() if cell.task.startswith(f"{recipe}/")}) > 1
        ]
        if other:
            found.append(f"{recipe}: variants have other data: {', '.join(other)}")
    if sweep.rates:
        found.append(rates_in_words(sweep.rates))
    return found


def _listed(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items())


def write_sweep(
    sweep: Sweep, results: Mapping[Cell, Measured], made: SweepResult, *, level: float = 0.05, test: Test = "t"
) -> None:
    """Small files that can be kept: every cell's numbers, the table in three forms, the reading, the picture."""
    content = {**record(sweep, results, made.failed), "level": level, "test": test, "key": sweep.key}
    content |= {"variants": sweep.variants, "rows": made.rows, "changes": made.changes, "notes": made.notes}
    write_json(sweep.folder / "sweep.json", json_values(content))
    table = sweep_table(sweep, made.rows, made.changes)
    missing = [f"{cell.folder} failed: {reason}" for cell, reason in made.failed.items()]
    reading = "".join(f"- {line}\n" for line in (*made.sentences, *made.notes, *missing))
    write_text(sweep.folder / "table.md", f"{markdown(table)}\n{reading}")
    write_text(sweep.folder / "table.tex", latex(table))
    write_text(sweep.folder / "table.csv", comma_separated(sweep, made.rows, made.changes))
    if sweep.key is not None:
        draw_line_plot(sweep, made.rows, sweep.folder / "sweep", level)
