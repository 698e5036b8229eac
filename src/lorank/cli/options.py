"""Arguments and options that several commands share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lorank.console import clear_errors

if TYPE_CHECKING:
    from lorank.recipe.recipe import Recipe
    from lorank.runs.data_file import DataFile


class NamesMethods(TyperCommand):
    """A command whose help names methods: those that score a frozen model for {scorers}, all of them for {methods}."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; methods are loaded now, a plugin's too if --plugin stands before --help."""
        with clear_errors():
            from lorank.methods import METHODS

        scorers = [name for name, method in METHODS.items() if method.scorer is not None]
        for option in self.params:
            if text := getattr(option, "help", None):
                named = text.replace("{scorers}", ", ".join(scorers)).replace("{methods}", ", ".join(METHODS))
                option.help = named  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    if files:
        with clear_errors():
            from lorank.methods.plugins import load_plugin

            for file in files:
                load_plugin(file)
    return files


# Loaded before anything else is read: recipes and other options may name its methods.
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_load_plugins,
        is_eager=True,
        help="Python file that calls lorank.register(...): methods of your own; may be given again",
    ),
]

Json = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="also write every number to this file, as JSON; -: to standard output, and everything else to standard error",
    ),
]
Adapter = Annotated[Path, typer.Argument(help="folder of a LoRA adapter, from whatever tool")]
Base = Annotated[
    str | None, typer.Option(help="base model, hub name or folder; default: the one that the adapter names")
]
RemoteCode = Annotated[bool, typer.Option(help="let the base model's own code run")]
PushToHub = Annotated[str | None, typer.Option(metavar="USER/NAME", help="also upload it to the Hugging Face hub")]
Private = Annotated[bool, typer.Option(help="with --push-to-hub: a private repository")]


def read_data(path: Path | None, overrides: Sequence[str], **columns: Any) -> "Recipe | DataFile | None":
    """The recipe, or the plain file of examples, that `--data` names; None without one.

    Args:
        path: of either.
        overrides: of the recipe.
        **columns: options of a data file by name (`text`, `label`, `task`, `max_length`); None where one is not given.

    Raises:
        RecipeError: a recipe that cannot be read, or options that belong to the other kind of data.

    """
    from lorank.errors import RecipeError

    given = {name: value for name, value in columns.items() if value is not None}
    called = " and ".join(f"--{name.replace('_', '-')}" for name in given)
    verb = "are" if len(given) > 1 else "is"
    if path is not None and path.suffix.lower() in (".yaml", ".yml"):
        if given:
            raise RecipeError(f"{called} {verb} of a data file; the recipe says it itself ({_as_keys(given)})")
        from lorank.recipe.files import load_recipe

        return load_recipe(path, overrides)
    if overrides:
        raise RecipeError(f"{overrides[0]!r} changes a recipe, and --data gives none; leave it out")
    if path is None:
        if given:
            raise RecipeError(f"{called} {verb} of a data file; give one as --data")
        return None
    from lorank.runs.data_file import DataFile

    if "text" in given:
        given["text"] = tuple(given["text"].split(","))
    return DataFile(path, **given)


def _as_keys(given: Mapping[str, Any]) -> str:
    return ", ".join(f"data.{name}=..." for name in given)
