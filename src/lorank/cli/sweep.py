"""`lorank sweep`."""

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


def sweep_command(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE... [[METHOD:|TASK:]KEY=VALUE]...", help="a recipe for each task; overrides"),
    ],
    over: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE,VALUE,...", help="one key, several values: a table and a line plot")
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML, NAME: [KEY=VALUE, ...]; all are compared with the first: an ablation"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="with --over: of {methods}, and controls; default: the recipe's, and lora where the values change "
            "its parameters or training"
        ),
    ] = None,
    seeds: Seeds = "5",
    metric: Metric = None,
    level: Annotated[float, typer.Option(help="chance of any false claim in the table")] = 0.05,
    test: Statistic = "t",
    search: Annotated[
        str | None,
        typer.Option(
            help='factors of the learning rate of each variant and method to choose from, "0.3,1,3", on a part of the '
            "training data"
        ),
    ] = None,
    processes: Processes = 1,
    tries: Tries = 2,
    engine: Engine = "local",
    output: Annotated[Path | None, typer.Option(help="default: runs/sweep-NAMES_OF_RECIPES-KEY_OR_FILE")] = None,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Run variants of recipes that differ in nothing but the settings that are named; paired statistics; plain words.

    The same command again continues a sweep that was stopped, and tries failed cells again.
    """
    with clear_errors(), document(json) as write:
        from lorank.artefact import read_json
        from lorank.compare.sweep.run_sweep import run_sweep
        from lorank.compare.sweep.table import sweep_table, terminal_table
        from lorank.compare.sweep.variants import read_sweep, read_values, read_variants
        from lorank.errors import ComparisonError

        if (over is None) == (variants is None):
            raise ComparisonError(
                "give either --over KEY=VALUE,VALUE (one key, several values) or --variants FILE (named variants)"
            )
        paths, overrides = recipes_and_overrides(recipes)
        key, found = (None, read_variants(variants)) if variants is not None else read_values(str(over))
        name = variants.stem if variants is not None else str(key)
        folder = output or Path("runs") / f"sweep-{'-'.join(path.stem for path in paths)}-{name}"
        options = run_options(engine=engine, test=test, processes=processes, tries=tries, level=level, search=search)
        sweep = read_sweep(
            paths, overrides, found, key=key, methods=read_names(methods), seeds=read_seeds(seeds), folder=folder
        )
        judged = dict.fromkeys(sweep.contents, metric) if metric else None
        made = run_sweep(sweep, metrics=judged, console=progress, **options)
        out.print(terminal_table(sweep_table(sweep, made.rows, made.changes)))
        for line in (*made.sentences, *made.notes):
            say(line)
        for cell, reason in made.failed.items():
            say(f"failed: {cell.folder}: {reason}")
        files = {"table.md": "table", "sweep.png": "line plot", "sweep.json": "every cell"}
        for file, what in files.items():
            if (folder / file).is_file():
                say(f"{what:<20}{folder / file}")
        write(read_json(folder / "sweep.json"))
    if made.failed:
        raise typer.Exit(1)
