"""`lorank run` and `lorank train`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorank.cli.options import Json, Plugin, Private, PushToHub
from lorank.console import clear_errors, document, out, progress, say

if TYPE_CHECKING:
    from lorank.runs.run import RunResult


def run_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, train.epochs=1")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_RECIPE")] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Score, allocate, train, evaluate and save. The same command again continues a run that was stopped."""
    with clear_errors(), document(json) as write:
        from lorank.recipe.files import load_recipe

        read = load_recipe(recipe, overrides or ())  # before torch is loaded: a typing error shows at once
        from lorank.runs.run import run

        _check_hub(push_to_hub)
        result = run(read, output or Path("runs") / recipe.stem, progress)
        _print_result(result, write)
        _push(result, push_to_hub, private)


def train_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, train, baselines")],
    plan: Annotated[Path, typer.Option(help="plan.json of `lorank allocate` or of a run")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="train.epochs=1")] = None,
    output: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_RECIPE-NAME_OF_PLAN")] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    json: Json = None,
    plugin: Plugin = None,
) -> None:
    """Train, evaluate and save the adapter of a plan. The same command again continues what was stopped."""
    with clear_errors(), document(json) as write:
        from lorank.plan import RankPlan
        from lorank.recipe.files import load_recipe

        read, ranks = load_recipe(recipe, overrides or ()), RankPlan.load(plan)
        from lorank.runs.run import run_plan

        directory = output or Path("runs") / f"{recipe.stem}-{plan.stem}"
        _check_hub(push_to_hub)
        result = run_plan(read, ranks, directory, progress)
        _print_result(result, write)
        _push(result, push_to_hub, private)


def _print_result(result: "RunResult", write: Callable[[Any], None]) -> None:
    from lorank.processes import processes
    from lorank.report.numbers import plan_numbers
    from lorank.report.tables import group_table, quadrature_lines, rank_table, result_table, stability_lines

    if not processes().is_main_process:
        return
    made_by, method = result.plan.provenance, next(iter(result.results))
    preset = f", preset {made_by['preset']}" if made_by.get("preset") else ""
    out.print(f"{method}{preset}, budget {result.plan.budget}", highlight=False)
    out.print(rank_table(result.plan))
    if (groups := group_table(result.plan)) is not None:
        out.print(groups)
    for line in [*stability_lines(result.plan), *quadrature_lines(result.plan)]:
        say(line)
    out.print(result_table(result.results, result.plan.budget_parameters, result.plan.budget_units))
    for name, what in {
        "adapter": "PEFT LoRA adapter",
        "plan.json": "rank plan",
        "report.html": "report",
        "ranks.png": "heat map",
        "cuts.png": "before and after",
        "scores.safetensors": "importance scores",
        "metrics.json": "metrics",
    }.items():
        if (result.directory / name).exists():
            say(f"{what:<20}{result.directory / name}")
    write({"folder": result.directory, "results": dict(result.results), "plan": plan_numbers(result.plan)})


def _check_hub(repository: str | None) -> None:
    """Before training: a login that is missing is found now."""
    from lorank.processes import processes
    from lorank.serving.hub import check_hub

    if repository and processes().is_main_process:
        check_hub(repository)


def _push(result: "RunResult", repository: str | None, private: bool) -> None:
    from lorank.processes import processes
    from lorank.serving.hub import push

    if repository and processes().is_main_process:
        say(f"{'on the hub':<20}{push(result.directory / 'adapter', repository, private=private)}")
