"""`lorank compare`: run a grid, or continue it, and write what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.artefact import json_values, versions, write_json, write_text
from lorank.compare.answer import Contrast, Row, answer, contrasts, with_losses
from lorank.compare.cells import BASELINE, CONTROLS, Cell, Measured, budget_of, recipe_of, source_of
from lorank.compare.controls import check_shortened
from lorank.compare.cost import what_seeds_can_show
from lorank.compare.example_pairs import read_cell_losses
from lorank.compare.forest_plot import draw_forest_plot
from lorank.compare.grid import Grid, grid_content
from lorank.compare.launch import Launch
from lorank.compare.learning_rate import rates_in_words, searched
from lorank.compare.over_tasks import COLUMNS as OVER_TASKS
from lorank.compare.over_tasks import OverTasks, over_tasks, overall_sentence
from lorank.compare.pareto import draw_pareto, with_front
from lorank.compare.result_table import comma_separated, latex, latex_table, markdown, over_tasks_lines
from lorank.compare.run_grid import run_grid
from lorank.compare.statistics import Test
from lorank.compare.words import general_sentences, loss_sentences, sentence
from lorank.errors import ComparisonError
from lorank.recipe.files import read_override, read_recipe
from lorank.recipe.method_sections import merged
from lorank.report.markdown import plain_table
from lorank.tasks.data import load_task_data
from lorank.tasks.metrics import choose_metrics
from lorank.validation import nearest

# What is compared unless the user says otherwise.
DEFAULT = ("lora", "adalora", "i-lora", "igu-lora", "sensitivity-lora", "eva", "svd-truncate", "shuffled")


@dataclass(frozen=True)
class Comparison:
    """A comparison that has been run.

    Attributes:
        rows: one for each task, budget and method.
        contrasts: of methods with their controls.
        sentences: what can be said of each, in words.
        failed: cells without a result, and why.
        folder: where the tables are.
        over_tasks: one line for each budget and method over all tasks; empty where there is one task.

    """

    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    sentences: tuple[str, ...]
    failed: Mapping[Cell, str]
    folder: Path
    over_tasks: tuple[OverTasks, ...] = ()


def read_grid(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    budgets: Sequence[str] | None,
    folder: Path,
) -> Grid:
    """A grid from recipes and the words of the command line.

    Args:
        recipes: a task each; its name is the file's.
        overrides: `key=value` for all cells, or `METHOD:key=value` and `TASK:key=value` for one method's or one task's.
        methods: of `METHODS` and `CONTROLS`; None takes `DEFAULT` and the recipes' own.
        seeds: of the runs.
        budgets: None takes the recipes' own.
        folder: where cells work.

    Raises:
        RecipeError: a recipe or override that cannot be read.
        ComparisonError: two recipes of one name, or of different budgets where none is given.

    """
    common, of_task, own = split_overrides(overrides, recipes)
    contents = {path.stem: read_recipe(path, [*common, *of_task[path.stem]]) for path in recipes}
    asked_budgets = tuple(budgets or dict.fromkeys(map(budget_of, contents.values())))
    if budgets is None and len(asked_budgets) > 1:
        raise ComparisonError(f"the recipes have different budgets ({', '.join(asked_budgets)}); give --budgets")
    sources = (source_of(content, "shuffled") for content in contents.values())
    names = tuple(dict.fromkeys([*DEFAULT, *sources]) if methods is None else methods)
    known = (*names, *(() if methods is not None else CONTROLS))
    if strange := [name for name in own if name not in known]:
        raise ComparisonError(
            f"{strange[0]!r} has choices of its own, and is neither a method nor a task here"
            f"{nearest(strange[0], [*known, *contents])}"
        )
    return Grid(contents, asked_budgets, names, tuple(seeds), own, folder)


def split_overrides(
    overrides: Sequence[str], recipes: Sequence[Path]
) -> tuple[list[str], dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Overrides of the command line: those of all cells, those of each task, and those of each method as nested mappings.

    Raises:
        RecipeError: an override that cannot be read.
        ComparisonError: two recipes of one name.

    """
    common, own, of_task = list[str](), dict[str, dict[str, Any]](), dict[str, list[str]]()
    for path in recipes:
        if path.stem in of_task:
            raise ComparisonError(f"two recipes are called {path.stem!r}; give them different names")
        of_task[path.stem] = []
    for override in overrides:
        name, colon, rest = override.partition(":")
        if not colon or "=" in name:
            common.append(override)
        elif name in of_task:
            of_task[name].append(rest)
        else:
            own[name] = merged(own.get(name, {}), _nested(rest))
    return common, of_task, own


def with_equal_compute(grid: Grid, console: Console) -> Grid:
    """The grid with `equal-compute`, where every recipe's method has two stages and the second is longer than what a plan costs.

    Raises:
        LorankError: a recipe or data that cannot be read.

    """
    for task, content in grid.contents.items():
        recipe = grid.recipe(Cell(task, grid.budgets[0], source_of(content, "equal-compute"), grid.seeds[0]))
        if not recipe.has_search:
            return grid
        try:
            check_shortened(recipe, len(load_task_data(recipe.data).train))
        except ComparisonError as error:
            console.print(f"{task}: {error}; it is left out", highlight=False)
            return grid
    return replace(grid, methods=(*grid.methods, "equal-compute"))


def _nested(override: str) -> dict[str, Any]:
    """`train.learning_rate=1e-3` as nested mappings."""
    keys, value = read_override(override)
    for key in reversed(keys):
        value = {key: value}
    return value


def compare_recipes(
    grid: Grid,
    *,
    processes: int = 1,
    tries: int = 2,
    level: float = 0.05,
    test: Test = "t",
    metrics: Mapping[str, str] | None = None,
    search: Sequence[float] | None = None,
    within: float | None = None,
    console: Console | None = None,
    launch: Launch | None = None,
) -> Comparison:
    """Run what is left of a grid, and write its tables, its picture and its reading into the grid's folder.

    Args:
        grid: what is compared.
        processes: cells at a time.
        tries: for each cell.
        level: of claims and intervals.
        test: "t" or "wilcoxon".
        metrics: task -> what it is judged by; None: the first of its metrics.
        search: factors of each method's learning rate to choose from, on a part of the training data; None: no search.
        within: the largest difference of the metric that counts as none: equality within it is tested too; None: it is not.
        console: for what the grid costs and can show, and one line a cell.
        launch: as in `run_grid`.

    Raises:
        LorankError: as `run_grid`, `searched` and `answer`.

    """
    check_metrics(grid, metrics or {})
    if console is not None:
        console.print(what_seeds_can_show(grid, level, test), highlight=False, soft_wrap=True)
    if search is not None:
        grid = searched(grid, search, metrics=metrics, processes=processes, tries=tries, console=console, launch=launch)
    results = run_grid(grid, processes=processes, tries=tries, console=console, launch=launch)
    claims: dict[str, Any] = {"level": level, "test": test, "within": within}
    rows = with_front(answer(grid.cells(), results, metrics=metrics, **claims))
    against, overall = contrasts(rows, grid.controlled(), **claims), over_tasks(rows, **claims)
    rows, against = with_losses(rows, against, read_cell_losses(list(results), grid.folder), level)
    comparison = Comparison(
        rows=tuple(rows),
        contrasts=tuple(against),
        sentences=(
            *(sentence(row, level) for row in rows),
            *(sentence(one, level) for one in against),
            *loss_sentences([*rows, *against], level),
            *(overall_sentence(one, len(grid.seeds), level) for one in overall if one.difference is not None),
            *general_sentences(rows),
            *([rates_in_words(grid.rates)] if grid.rates else []),
        ),
        failed=grid.errors(),
        folder=grid.folder,
        over_tasks=tuple(overall),
    )
    write_comparison(grid, results, comparison, claims)
    return comparison


def check_metrics(grid: Grid, metrics: Mapping[str, str]) -> None:
    """Refuse what a task does not measure, before anything is run.

    Raises:
        ComparisonError: it is not among the recipe's metrics.
        RecipeError: it is no metric of the task.

    """
    for task, name in metrics.items():
        recipe = recipe_of(grid.contents[task], Cell(task, grid.budgets[0], BASELINE, grid.seeds[0]))
        known = list(choose_metrics(recipe.data.task, recipe.metrics))
        if name not in known:
            raise ComparisonError(
                f"metric {name!r} is none of {task}'s; allowed: {', '.join(known)}, and what else stands in the recipe's metrics"
            )


def write_comparison(
    grid: Grid, results: Mapping[Cell, Measured], comparison: Comparison, claims: Mapping[str, Any]
) -> None:
    """Small files that can be kept: every cell's numbers, the tables in three forms, the pictures, the reading.

    Args:
        grid: that was run.
        results: of its cells.
        comparison: what they say.
        claims: `level`, `test` and `within` of the claims.

    """
    rows, failed, overall = comparison.rows, comparison.failed, comparison.over_tasks
    content = {**record(grid, results, failed), "level": claims["level"], "test": claims["test"]}
    content |= {
        "equal_within": claims["within"],
        "rows": rows,
        "contrasts": comparison.contrasts,
        "over_tasks": overall,
    }
    write_json(grid.folder / "comparison.json", json_values(content))
    missing = [f"{cell.folder} failed: {reason}" for cell, reason in failed.items()]
    reading = "\n".join(f"- {line}" for line in [*comparison.sentences, *missing])
    lines, names = over_tasks_lines(overall, len(grid.seeds)), ("budget", *OVER_TASKS)
    second = f"{plain_table(names, lines)}\n" if overall else ""
    tables = {
        "table.md": f"{markdown(rows)}\n{second}{reading}\n",
        "table.tex": latex(rows) + (latex_table(names, lines, left=2, together=1) if overall else ""),
        "table.csv": comma_separated(rows),
    }
    for name, text in tables.items():
        write_text(grid.folder / name, text)
    draw_forest_plot(rows, grid.folder / "forest.png", claims["level"])
    draw_pareto(rows, grid.folder / "pareto.png")


def record(grid: Grid, results: Mapping[Cell, Measured], failed: Mapping[Cell, str]) -> dict[str, Any]:
    """What a grid was and what its cells have measured, for the record."""
    return {
        "grid": grid_content(grid),
        "versions": versions(),
        "cells": [{**asdict(cell), **asdict(one)} for cell, one in results.items()],
        "failed": [{**asdict(cell), "reason": reason} for cell, reason in failed.items()],
    }
