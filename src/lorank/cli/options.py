"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lorank.console import clear_errors


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
