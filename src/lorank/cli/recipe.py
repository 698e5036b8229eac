"""`lorank recipe`: recipes of earlier formats converted."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.console import clear_errors, say

recipe_app = typer.Typer(help="Convert recipes of earlier formats.", no_args_is_help=True)


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
