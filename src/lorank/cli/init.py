"""`lorank init`: a commented recipe to start with."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lorank.cli.options import Plugin
from lorank.console import clear_errors, say


def init_command(
    model: Annotated[
        str, typer.Argument(help="hub name or folder of the base model; its config and tokenizer are read")
    ],
    data: Annotated[str, typer.Argument(help="csv, tsv, json, jsonl or parquet file, or the name of a hub data set")],
    test: Annotated[Path | None, typer.Option(help="beside a file: another one, to evaluate on at the end")] = None,
    config: Annotated[str | None, typer.Option(help="configuration of a hub data set, for example cola")] = None,
    task: Annotated[str | None, typer.Option(help="as data.task of a recipe; default: by the columns")] = None,
    text: Annotated[
        str | None, typer.Option(help='column of the text, or two: "one,two"; default: by their names')
    ] = None,
    label: Annotated[str | None, typer.Option(help="column of the label; default: by its name")] = None,
    method: Annotated[str, typer.Option(help="that decides the ranks, see lorank methods")] = "igu-lora",
    budget: Annotated[str, typer.Option(help='adapter parameters, "1M", "r=8", "0.1%", ...')] = "r=8",
    output: Annotated[Path, typer.Option(help="the recipe")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option(help="replace the recipe if it is there already")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="let the model's own code run")] = False,
    plugin: Plugin = None,
) -> None:
    """Write a commented recipe to start with: look at the columns of the data and at the model, and say what was chosen."""
    with clear_errors():
        from lorank.artefact import check_unwritten

        check_unwritten(output, overwrite=overwrite)
        from lorank.errors import as_seen
        from lorank.models.pretrained import Pretrained
        from lorank.starter.write import in_yaml, starter_choices, write_starter

        columns = tuple(name.strip() for name in (text or "").split(",") if name.strip())
        choices = starter_choices(
            Pretrained(model, trust_remote_code=trust_remote_code),
            data,
            columns=(task, columns, label or ""),
            parts=(test, config),
            method=method,
            budget=budget,
        )
        write_starter(output, choices, f"lorank init {shlex.join([model, data])}")
        values = [in_yaml(choice.value) for choice in choices]
        width = max(len(choice.key) for choice in choices) + 2
        for choice, value in zip(choices, values, strict=True):
            say(f"{choice.key:<{width}}{value:<24}  {as_seen(choice.why)}")
        say(f"\nrecipe: {output}; next:")
        say(f"  lorank headroom {shlex.quote(str(output))}   # can ranks matter here?")
        say(f"  lorank run {shlex.quote(str(output))}")
