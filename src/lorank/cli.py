"""The command line: parses, calls one function, prints. `lorank --help` loads neither torch nor transformers."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorank.errors import LorankError

app = typer.Typer(
    help="Adaptive-rank LoRA: which layer gets which rank, inside an exact parameter budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Where there is no terminal, tables keep their full width in a log.
_out = Console(width=None if sys.stdout.isatty() else 140)
_progress = Console(stderr=True, width=None if sys.stderr.isatty() else 200)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """One line for what lorank raises on purpose, and exit code 1. Other packages' deprecations are not the user's."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|pyarrow|accelerate)\.")
    try:
        yield
    except LorankError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, stage2.epochs=1")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_RECIPE")] = None,
) -> None:
    """Score, allocate, train, evaluate and save. The same command again continues a run that was stopped."""
    with _clear_errors():
        import transformers

        from lorank.report.tables import rank_table, result_table
        from lorank.training.processes import processes
        from lorank.training.recipe import load_recipe
        from lorank.training.run import run

        transformers.utils.logging.set_verbosity_error()
        result = run(load_recipe(recipe, overrides or ()), output_dir or Path("runs") / recipe.stem, _progress)
        if not processes().is_main_process:
            return
        made_by = result.plan.provenance
        _out.print(f"{made_by['method']}, preset {made_by['preset']}, budget {result.plan.budget}", highlight=False)
        _out.print(rank_table(result.plan))
        _out.print(result_table(result.results, result.plan.budget_parameters))
        for name, what in {
            "adapter": "PEFT LoRA adapter",
            "plan.json": "rank plan",
            "ranks.png": "heat map",
            "scores.safetensors": "importance scores",
            "metrics.json": "metrics",
        }.items():
            _out.print(f"{what:<20}{result.directory / name}", highlight=False, soft_wrap=True)


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="hub name or folder; only its config is read")],
    targets: Annotated[str | None, typer.Option(help="regular expression for full module names")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="let the model's own code run")] = False,
) -> None:
    """Show the adaptable modules, the cost of one unit of rank, and what budgets mean for a model."""
    with _clear_errors():
        from lorank.report.tables import budget_table, target_table
        from lorank.targets import find_targets
        from lorank.training.model import base_parameters, load_without_weights

        loaded = load_without_weights(model, trust_remote_code=trust_remote_code)
        found, size = find_targets(loaded, targets), base_parameters(loaded)
        _out.print(
            f"{model}: {type(loaded).__name__}, {size:,} parameters without its head", highlight=False, soft_wrap=True
        )
        _out.print(target_table(found))
        _out.print(budget_table(found, size))


if __name__ == "__main__":
    app()
