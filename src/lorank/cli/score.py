"""`lorank score`: the modules of a model before any training."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out, progress, say


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
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Score the modules of a model before training. `lorank allocate` then makes plans for any budget of it."""
    with clear_errors(), document(json) as write:
        from lorank.artefact import check_unwritten
        from lorank.recipe.files import make_recipe, read_recipe
        from lorank.report.numbers import score_numbers
        from lorank.report.tables import score_table

        check_unwritten(output, overwrite=overwrite)  # before the work: what it would be is not known yet
        chosen = [f"{key}={value}" for key, value in (("method", method), ("preset", preset)) if value is not None]
        content = read_recipe(recipe, [*chosen, *(overrides or ())])
        read = make_recipe({**content, "budget": "r=1", "ranks": {}})  # scores depend on no budget and on no limits
        from lorank.processes import processes
        from lorank.runs.score_recipe import score_recipe

        scores = score_recipe(read, output, progress)
        if not processes().is_main_process:
            return
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
        write({"file": output, **score_numbers(scores)})
