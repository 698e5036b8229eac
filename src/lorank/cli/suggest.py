"""`lorank suggest`."""

from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out, progress, say


def suggest_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, train; its test part is not looked at")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, train.batch_size=16")
    ] = None,
    ranks: Annotated[str, typer.Option(help="uniform ranks that are tried, four at least")] = "1,2,4,8,16",
    steps: Annotated[
        int | None, typer.Option(help="optimizer steps of each short run; default: the recipe's, 150 at most")
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each rank, 2 at least")] = 3,
    within: Annotated[
        str, typer.Option(help="what a smaller budget may lose: 2% of the largest rank's loss, or a loss, 0.01")
    ] = "2%",
    minutes: Annotated[
        float, typer.Option(help="most time for all runs; seeds are left out where it is too short")
    ] = 60,
    fraction: Annotated[float, typer.Option(help="of the training data that is held out to judge on")] = 0.2,
    side_by_side: Annotated[
        int | None, typer.Option(help="adapters in one pass; fewer take less memory; default: all")
    ] = None,
    triplets: Annotated[bool, typer.Option(help="also look for a learning rate of triplets")] = True,
    output: Annotated[Path | None, typer.Option(help="default: runs/suggest-NAME_OF_RECIPE")] = None,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Say how much rank a task needs, and with which learning rates to start, from short runs on a part of the training data.

    The same command again continues one that was stopped.
    """
    with clear_errors(), document(json) as write:
        from lorank.artefact import read_json
        from lorank.errors import RecipeError
        from lorank.recipe.files import load_recipe
        from lorank.suggest.question import Question

        try:
            tried = tuple(int(rank) for rank in ranks.split(","))
        except ValueError:
            raise RecipeError(f"--ranks is {ranks!r}; give whole numbers with commas, for example 1,2,4,8,16") from None
        question = Question(
            ranks=tried, steps=steps, seeds=seeds, within=within, minutes=minutes, fraction=fraction,
            side_by_side=side_by_side, triplets=triplets,
        )  # fmt: skip
        read = load_recipe(recipe, overrides or ())
        from lorank.suggest.suggest import suggest

        folder = output or Path("runs") / f"suggest-{recipe.stem}"
        answer = suggest(read, question, folder, progress)
        out.print(answer.table())
        out.print(answer.rate_table())
        for line in answer.words():
            say(line)
        print(answer.snippet, end="")
        for name, what in (
            ("suggestion.json", "suggestion"),
            ("suggestion.yaml", "recipe"),
            ("suggestion.png", "picture"),
        ):
            if (folder / name).is_file():
                say(f"{what:<20}{folder / name}")
        write(read_json(folder / "suggestion.json"))
