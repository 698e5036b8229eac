"""`lorank prune`: a trained adapter made smaller."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorank.cli.options import Plugin
from lorank.console import clear_errors, out, progress, say


def prune_command(
    adapter: Annotated[Path, typer.Argument(help="folder of a trained PEFT LoRA adapter")],
    budget: Annotated[str, typer.Option(help='adapter parameters, "2M", "r=4", ...')],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="the recipe that trained it: base model, data to score and to measure on")
    ] = None,
    by: Annotated[str | None, typer.Option(help="path (needs --data, and is its default) or svd")] = None,
    rank_by: Annotated[str, typer.Option(help="score, or score-per-parameter")] = "score",
    max_rank: Annotated[int | None, typer.Option(help="upper limit for every module")] = None,
    output: Annotated[Path, typer.Option(help="new folder")] = Path("pruned"),
    plugin: Plugin = None,
) -> None:
    """Make a trained adapter smaller, without training: cut its triplets to a budget, and say what that cost."""
    with clear_errors():
        from lorank.recipe.files import load_recipe
        from lorank.report.tables import cost_table, rank_table

        recipe = load_recipe(data, overrides or ()) if data is not None else None
        from lorank.runs.prune_adapter import prune_adapter

        limits: dict[str, Any] = {"rank_by": rank_by, "max_rank": max_rank}
        plan, measured = prune_adapter(adapter, budget, output, recipe, by=by, console=progress, **limits)
        out.print(rank_table(plan))
        out.print(cost_table(measured))
        say(f"pruned adapter      {output / 'adapter'}")
