"""`lorank recipe`: recipes of earlier formats converted. `lorank recipes`: those that are installed with lorank."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Json
from lorank.console import clear_errors, document, out, say

recipe_app = typer.Typer(help="Convert recipes of earlier formats.", no_args_is_help=True)
recipes_app = typer.Typer(invoke_without_command=True)


@recipe_app.callback()
def _group() -> None:
    """Keeps `upgrade` a command of its own where it is the only one."""


@recipe_app.command("upgrade")
def recipe_upgrade_command(recipe: Annotated[Path, typer.Argument(help="YAML recipe of format 1")]) -> None:
    """Convert a recipe to format 2 where it stands; the old file is kept beside it, and of comments those at its top."""
    with clear_errors():
        from lorank.recipe.files import upgrade_file

        kept = upgrade_file(recipe)
        say(f"{'format 2':<20}{recipe}")
        say(f"{'format 1, kept':<20}{kept}")


@recipes_app.callback()
def recipes_command(context: typer.Context, json: Json = None) -> None:
    """List the recipes that are installed with lorank: the papers' experiments. `copy` writes one as a file."""
    if context.invoked_subcommand is not None:
        return
    with clear_errors(), document(json) as write:
        from lorank.recipe.shipped import described
        from lorank.report.split_table import SplitTable

        found = described()
        columns = ("name", "method", "model", "data", "budget")
        table = SplitTable("recipes", columns, prose=columns)
        for row in found:
            table.add_row(*(str(row[key] or "-") for key in columns))
        out.print(table)
        say("without a model: variants of settings, for lorank sweep --variants")
        say("lorank recipes copy NAME writes one into this folder")
        write({"recipes": found})


@recipes_app.command("copy")
def recipes_copy_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="as `lorank recipes` lists them")],
    folder: Annotated[Path, typer.Option(help="where they are written")] = Path(),
    overwrite: Annotated[bool, typer.Option(help="replace files of that name that differ")] = False,
) -> None:
    """Write recipes as files: i-lora/deberta-v3-base-cola as deberta-v3-base-cola.yaml."""
    with clear_errors():
        from lorank.recipe.shipped import copy_recipes

        for path in copy_recipes(names, folder, overwrite=overwrite):
            say(f"{'recipe':<20}{path}")
