"""`lorank prune`: a trained adapter made smaller."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorank.cli.options import Json, Plugin, read_data
from lorank.console import clear_errors, document, out, progress, say


def prune_command(
    adapter: Annotated[Path, typer.Argument(help="folder of a trained PEFT LoRA adapter")],
    budget: Annotated[
        str,
        typer.Option(
            help='adapter parameters, "2M", "r=4", "half" (of the adapter\'s), or "keep=50%" of its units of rank; several: '
            '"2M,1M,half"'
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="the recipe that trained it (base model, data to score and to measure on), or a file of labelled examples: csv, "
            "tsv, json, jsonl, parquet"
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help='column of the text in a data file, or two: "one,two"; default: text')
    ] = None,
    label: Annotated[str | None, typer.Option(help="column of the label in a data file; default: label")] = None,
    by: Annotated[str | None, typer.Option(help="path (needs --data, and is its default) or svd")] = None,
    rank_by: Annotated[str, typer.Option(help="score, or score-per-parameter")] = "score",
    max_rank: Annotated[int | None, typer.Option(help="upper limit for every module")] = None,
    output: Annotated[Path, typer.Option(help="new folder; several budgets: with a folder for each in it")] = Path(
        "pruned"
    ),
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Make a trained adapter smaller, without training: cut its triplets to a budget, and say what that cost."""
    with clear_errors(), document(json) as write:
        found = read_data(data, overrides or (), text=text, label=label)
        from lorank.report.numbers import plan_numbers
        from lorank.report.tables import rank_table
        from lorank.runs.prune_adapter import prune_adapter, prune_to_budgets

        limits: dict[str, Any] = {"rank_by": rank_by, "max_rank": max_rank}
        from lorank.pruning.budgets import read_budgets
        from lorank.pruning.report import budget_table, cost_table, energy_lines, svd_lines

        budgets = read_budgets(budget)
        if len(budgets) > 1:
            before, after = prune_to_budgets(adapter, budgets, output, found, by=by, console=progress, **limits)
            out.print(budget_table(before, after))
            for name, measured in after.items():
                for line in (*energy_lines(measured), *svd_lines(measured)):
                    say(f"{name}: {line}")
            say(f"curve               {output / 'curve.png'}")
            say(f"pruned adapters     {output}")
            write({"folder": output, "before": before, "after": after})
            return
        plan, measured = prune_adapter(adapter, budgets[0], output, found, by=by, console=progress, **limits)
        out.print(rank_table(plan))
        out.print(cost_table(measured))
        for line in (*energy_lines(measured), *svd_lines(measured["after"])):
            say(line)
        say(f"pruned adapter      {output / 'adapter'}")
        write({"folder": output, **measured, "plan": plan_numbers(plan)})
