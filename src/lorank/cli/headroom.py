"""`lorank headroom`."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out, progress, say


def headroom_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, train.max_steps=100")
    ] = None,
    plans: Annotated[int, typer.Option(help="random plans, beside uniform ranks and others; at least 2")] = 8,
    seeds: Annotated[int, typer.Option(help="at most; fewer where the answer is clear before; at least 3")] = 8,
    smallest: Annotated[
        float, typer.Option(help="smallest gain that counts, as a share of the loss of uniform ranks")
    ] = 0.02,
    held_out: Annotated[int, typer.Option(help="training examples that plans are judged on, at most a fifth")] = 1000,
    side_by_side: Annotated[
        int | None, typer.Option(help="plans that train in one pass; default: as many as fit into memory")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="default: runs/headroom-NAME_OF_RECIPE")] = None,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Can ranks matter on this task? Try many plans of the same budget, and say how much a chosen one gains.

    It stops when the answer is clear. The same command again continues what was stopped.
    """
    with clear_errors(), document(json) as write:
        from lorank.artefact import read_json
        from lorank.recipe.files import load_recipe

        read = load_recipe(recipe, overrides or ())
        from lorank.headroom.measure import HeadroomOptions, measure_headroom
        from lorank.headroom.report import plan_table, report_lines

        options = HeadroomOptions(plans, seeds, held_out, smallest, side_by_side)
        folder = output or Path("runs") / f"headroom-{recipe.stem}"
        measured = measure_headroom(read, folder, options, progress)
        out.print(plan_table(measured))
        for line in report_lines(measured):
            say(line)
        for name, what in {"headroom.json": "all numbers", "headroom.png": "picture", "plans": "plans"}.items():
            if (folder / name).exists():
                say(f"{what:<20}{folder / name}")
        write(read_json(folder / "headroom.json"))
