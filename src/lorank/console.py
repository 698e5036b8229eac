"""What the commands share: where they print, and how they fail."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from lorank.errors import LorankError, LorankWarning

# Where there is no terminal, tables keep their full width in a log.
out = Console(width=None if sys.stdout.isatty() else 140)
progress = Console(stderr=True, width=None if sys.stderr.isatty() else 200)


@contextmanager
def clear_errors() -> Iterator[None]:
    """One line for what lorank raises on purpose, and exit code 1. Other packages' deprecations are not the user's."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|pyarrow|accelerate)\.")
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, LorankWarning):
            progress.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            usual(message, category, *rest, **options)

    warnings.showwarning = show
    try:
        yield
    except LorankError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    finally:
        warnings.showwarning = usual


def say(text: str) -> None:
    """Print a line as it is, however long."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)
