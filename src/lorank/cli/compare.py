"""`lorank compare`."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Plugin
from lorank.console import clear_errors, out, progress, say


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
    seeds: Annotated[str, typer.Option(help='how many, "5", or which, "0,1,7"')] = "5",
    budgets: Annotated[str | None, typer.Option(help='"1M,2M"; default: the recipes\' own')] = None,
    metric: Annotated[str | None, typer.Option(help="what is judged by; default: the first of each recipe's")] = None,
    level: Annotated[
        float, typer.Option(help="chance of any false claim, against uniform LoRA and against controls each")
    ] = 0.05,
    test: Annotated[str, typer.Option(help="t or wilcoxon")] = "t",
    search: Annotated[
        str | None,
        typer.Option(
            help='factors of each method\'s learning rate to choose from, "0.3,1,3", on a part of the training data'
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="cells at a time")] = 1,
    tries: Annotated[int, typer.Option(help="for each cell, before it is left out")] = 2,
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: a Ray cluster, lorank[ray]")
    ] = "local",
    output: Annotated[Path | None, typer.Option(help="default: runs/compare-NAMES_OF_RECIPES")] = None,
    plugin: Plugin = None,
) -> None:
    """Compare methods on tasks: equal parameters, scale, data order and tokens; paired statistics; plain words.

    The same command again continues a grid that was stopped, and tries failed cells again.
    """
    with clear_errors():
        from lorank.compare.compare import compare_recipes, read_grid, with_equal_compute
        from lorank.compare.result_table import terminal_tables
        from lorank.errors import ComparisonError

        paths = [Path(one) for one in recipes if "=" not in one]
        overrides = [one for one in recipes if "=" in one]
        if not paths:
            raise ComparisonError("no recipe is given; give a YAML file for each task")
        if engine not in ("local", "ray"):
            raise ComparisonError(f"engine {engine!r} is unknown; allowed: local, ray")
        if test not in ("t", "wilcoxon"):
            raise ComparisonError(f"test {test!r} is unknown; allowed: t, wilcoxon")
        folder = output or Path("runs") / f"compare-{'-'.join(path.stem for path in paths)}"
        if processes < 1 or tries < 1 or not 0 < level < 1:
            raise ComparisonError("--processes and --tries start at 1, --level is a probability between 0 and 1")
        asked = [one.strip() for one in budgets.split(",")] if budgets else None
        chosen = [one.strip() for one in methods.split(",")] if methods else None
        grid = read_grid(paths, overrides, chosen, _seeds(seeds), asked, folder)
        if methods is None:
            grid = with_equal_compute(grid, progress)
        launch = None
        if engine == "ray":
            from lorank.compare.ray_cluster import on_ray

            launch = on_ray(processes)
        judged = dict.fromkeys(grid.contents, metric) if metric else None
        found = compare_recipes(
            grid,
            processes=processes,
            tries=tries,
            level=level,
            test="wilcoxon" if test == "wilcoxon" else "t",
            metrics=judged,
            search=_factors(search) if search else None,
            console=progress,
            launch=launch,
        )
        for table in terminal_tables(found.rows):
            out.print(table)
        for line in found.sentences:
            say(line)
        for cell, reason in found.failed.items():
            say(f"failed: {cell.folder}: {reason}")
        for name, what in {"table.md": "table", "forest.png": "forest plot", "comparison.json": "every cell"}.items():
            say(f"{what:<20}{folder / name}")
    if found.failed:
        raise typer.Exit(1)


def _factors(text: str) -> list[float]:
    from lorank.errors import ComparisonError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ComparisonError(f'search is {text!r}; allowed: factors of learning rates, "0.3,1,3"') from None


def _seeds(text: str) -> list[int]:
    from lorank.errors import ComparisonError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComparisonError(f'seeds are {text!r}; allowed: how many, "5", or which, "0,1,7"') from None
    if len(numbers) == 1 and numbers[0] < 1:
        raise ComparisonError(f"seeds are {text!r}; at least one is needed")
    return list(range(numbers[0])) if len(numbers) == 1 else list(dict.fromkeys(numbers))
