"""`lorank compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.grid_options import (
    Engine,
    Metric,
    Processes,
    Seeds,
    Statistic,
    Tries,
    read_names,
    read_seeds,
    recipes_and_overrides,
    run_options,
)
from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out, progress, say


def compare_command(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [[METHOD:|TASK:]KEY=VALUE]...", help="a recipe for each task; overrides"),
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            help="of {methods}, and the controls shuffled, uniform-triplets, equal-compute, svd-truncate, full; "
            "default: lora,adalora,i-lora,igu-lora,sensitivity-lora,eva,svd-truncate,shuffled, the recipes' methods, and "
            "equal-compute where these have a search"
        ),
    ] = None,
    seeds: Seeds = "5",
    budgets: Annotated[str | None, typer.Option(help='"1M,2M"; default: the recipes\' own')] = None,
    metric: Metric = None,
    level: Annotated[
        float, typer.Option(help="chance of any false claim, against uniform LoRA and against controls each")
    ] = 0.05,
    test: Statistic = "t",
    search: Annotated[
        str | None,
        typer.Option(
            help='factors of each method\'s learning rate to choose from, "0.3,1,3", on a part of the training data'
        ),
    ] = None,
    equal_within: Annotated[
        float | None,
        typer.Option(help="largest difference of the metric that counts as none: also claim equality within it"),
    ] = None,
    processes: Processes = 1,
    tries: Tries = 2,
    engine: Engine = "local",
    output: Annotated[Path | None, typer.Option(help="default: runs/compare-NAMES_OF_RECIPES")] = None,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Compare methods on tasks: equal parameters, scale, data order and tokens; paired statistics; plain words.

    The same command again continues a grid that was stopped, and tries failed cells again.
    """
    with clear_errors(), document(json) as write:
        from lorank.artefact import read_json
        from lorank.compare.compare import compare_recipes, read_grid, with_equal_compute
        from lorank.compare.result_table import over_tasks_table, terminal_tables
        from lorank.errors import ComparisonError

        paths, overrides = recipes_and_overrides(recipes)
        folder = output or Path("runs") / f"compare-{'-'.join(path.stem for path in paths)}"
        options = run_options(engine=engine, test=test, processes=processes, tries=tries, level=level, search=search)
        grid = read_grid(paths, overrides, read_names(methods), read_seeds(seeds), read_names(budgets), folder)
        if methods is None:
            grid = with_equal_compute(grid, progress)
        if equal_within is not None and not 0 < equal_within < float("inf"):
            raise ComparisonError(f"--equal-within is {equal_within}; allowed: a difference above 0, for example 0.01")
        judged = dict.fromkeys(grid.contents, metric) if metric else None
        found = compare_recipes(grid, metrics=judged, within=equal_within, console=progress, **options)
        for table in terminal_tables(found.rows):
            out.print(table)
        if found.over_tasks:
            out.print(over_tasks_table(found.over_tasks, len(grid.seeds)))
        for line in found.sentences:
            say(line)
        for cell, reason in found.failed.items():
            say(f"failed: {cell.folder}: {reason}")
        files = {"table.md": "table", "forest.png": "forest plot", "pareto.png": "quality and cost"}
        for name, what in {**files, "comparison.json": "every cell"}.items():
            say(f"{what:<20}{folder / name}")
        write(read_json(folder / "comparison.json"))
    if found.failed:
        raise typer.Exit(1)
