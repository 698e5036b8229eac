"""`lorank inspect` and `lorank score`: a model before any training."""

import re
from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Plugin
from lorank.console import clear_errors, out, progress, say


def inspect_command(
    model: Annotated[str, typer.Argument(help="hub name or folder; only its config is read")],
    targets: Annotated[
        str | None, typer.Option(help='names, "query,value"; a regular expression for full names; or all-linear')
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="let the model's own code run")] = False,
) -> None:
    """Show the adaptable modules, the cost of one unit of rank, and what budgets mean for a model."""
    with clear_errors():
        from lorank.models.base_size import base_parameters
        from lorank.models.loading import load_without_weights
        from lorank.report.tables import budget_table, target_table
        from lorank.targets import find_targets

        loaded = load_without_weights(model, trust_remote_code=trust_remote_code)
        found, size = find_targets(loaded, _names_or_pattern(targets)), base_parameters(loaded)
        counted = f"{size:,} parameters, heads and poolers not counted; a budget of 1% is {size // 100:,}"
        say(f"{model}: {type(loaded).__name__}, {counted}")
        out.print(target_table(found))
        out.print(budget_table(found, size))


def _names_or_pattern(targets: str | None) -> str | list[str] | None:
    """Names as a recipe's list has them: with a comma, or without any sign that makes it a regular expression."""
    if targets is None or targets == "all-linear" or not re.fullmatch(r"[\w.\-]+(\s*,\s*[\w.\-]+)*", targets):
        return targets
    return [name.strip() for name in targets.split(",")]


def score_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, target_modules, measure")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, measure.examples=128")
    ] = None,
    method: Annotated[str | None, typer.Option(help="one of {scorers}; default: the recipe's")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="of the method; sensitivity-lora: per-output, recommended, or paper (the Hessian of the loss)"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="where the scores go")] = Path("scores.safetensors"),
    overwrite: Annotated[bool, typer.Option(help="replace the output if it is there already")] = False,
    plugin: Plugin = None,
) -> None:
    """Score the modules of a model before training. `lorank allocate` then makes plans for any budget of it."""
    with clear_errors():
        from lorank.artefact import check_unwritten
        from lorank.recipe.files import make_recipe, read_recipe
        from lorank.report.tables import score_table

        check_unwritten(output, overwrite=overwrite)  # before the work: what it would be is not known yet
        chosen = [f"{key}={value}" for key, value in (("method", method), ("preset", preset)) if value is not None]
        content = read_recipe(recipe, [*chosen, *(overrides or ())])
        read = make_recipe({**content, "budget": "r=1", "ranks": {}})  # scores depend on no budget and on no limits
        from lorank.runs.score_recipe import score_recipe

        scores = score_recipe(read, output, progress)
        made = scores.provenance
        out.print(
            f"{made['method']}, {made.get('examples', 'no')} examples, {made.get('seconds', 0):.1f} s", highlight=False
        )
        if why := made.get("one_example_at_a_time"):
            say(f"one example at a time, since {why}")
        if hessian := made.get("hessian_of"):
            say(f"Hessian of {hessian}")
        out.print(score_table(scores))
        say(f"importance scores   {output}")
