"""The command line: parses, calls one function, prints. `lorank --help` loads neither torch nor transformers."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorank.compare import commands as comparing
from lorank.console import CommandLine, clear_errors, out, progress, say
from lorank.serving import commands as serving
from lorank.serving.commands import Private, PushToHub

if TYPE_CHECKING:
    from lorank.runs.run import RunResult

app = typer.Typer(
    cls=CommandLine,
    help="Adaptive-rank LoRA: which layer gets which rank, inside an exact parameter budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from lorank import __version__

        typer.echo(f"lorank {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    pass


def _print_result(result: "RunResult") -> None:
    from lorank.processes import processes
    from lorank.report.tables import rank_table, result_table, stability_lines

    if not processes().is_main_process:
        return
    made_by, method = result.plan.provenance, next(iter(result.results))
    preset = f", preset {made_by['preset']}" if made_by.get("preset") else ""
    out.print(f"{method}{preset}, budget {result.plan.budget}", highlight=False)
    out.print(rank_table(result.plan))
    for line in stability_lines(result.plan):
        say(line)
    out.print(result_table(result.results, result.plan.budget_parameters))
    for name, what in {
        "adapter": "PEFT LoRA adapter",
        "plan.json": "rank plan",
        "ranks.png": "heat map",
        "scores.safetensors": "importance scores",
        "metrics.json": "metrics",
    }.items():
        if (result.directory / name).exists():
            say(f"{what:<20}{result.directory / name}")


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


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, stage2.epochs=1")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_RECIPE")] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
) -> None:
    """Score, allocate, train, evaluate and save. The same command again continues a run that was stopped."""
    with clear_errors():
        from lorank.recipe.recipe import load_recipe
        from lorank.runs.run import run

        _check_hub(push_to_hub)
        result = run(load_recipe(recipe, overrides or ()), output_dir or Path("runs") / recipe.stem, progress)
        _print_result(result)
        _push(result, push_to_hub, private)


@app.command("score")
def score_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, targets, calibration")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides, calibration.examples=128")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="sensitivity-lora, gradient, magnitude or eva; default: the recipe's")
    ] = None,
    output: Annotated[Path, typer.Option(help="where the scores go")] = Path("scores.safetensors"),
    overwrite: Annotated[bool, typer.Option(help="replace the output if it is there already")] = False,
) -> None:
    """Score the modules of a model before training. `lorank allocate` then makes plans for any budget of it."""
    with clear_errors():
        from lorank.artefact import check_unwritten
        from lorank.recipe.recipe import load_recipe
        from lorank.report.tables import score_table
        from lorank.runs.score_recipe import score_recipe

        check_unwritten(output, overwrite=overwrite)  # before the work: what it would be is not known yet
        # Scores depend on no budget, and with another method the recipe's own sections for its method do not apply.
        chosen = ["budget=r=1", "allocation={}"]
        chosen += [f"method={method}", "preset=null", "pruning={}"] if method is not None else []
        scores = score_recipe(load_recipe(recipe, [*(overrides or ()), *chosen]), output, progress)
        made = scores.provenance
        out.print(
            f"{made['method']}, {made.get('examples', 'no')} examples, {made.get('seconds', 0):.1f} s", highlight=False
        )
        if why := made.get("one_example_at_a_time"):
            say(f"one example at a time, since {why}")
        out.print(score_table(scores))
        say(f"importance scores   {output}")


@app.command("allocate")
def allocate_command(
    scores: Annotated[Path, typer.Argument(help="scores.safetensors of `lorank score` or of a run")],
    budget: Annotated[str, typer.Option(help='adapter parameters, "8.8M", "r=8", ...; several: "1M,2M,4M"')],
    output: Annotated[Path, typer.Option(help="with several budgets: plan-1M.json, ...")] = Path("plan.json"),
    max_rank: Annotated[int | None, typer.Option(help="upper limit for every module")] = None,
    min_rank: Annotated[int, typer.Option(help="lower limit for every module")] = 0,
    multiple_of: Annotated[int, typer.Option(help="every rank is a multiple of this")] = 1,
    rank_by: Annotated[str, typer.Option(help="score, or score-per-parameter")] = "score",
    scale: Annotated[
        float | None, typer.Option(help="alpha / r of every adapter; default: the recipe's that was scored, or 2")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="hub name or folder: check from its config that the scores are of this model")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace plans of that name that differ")] = False,
) -> None:
    """Make rank plans from scores: no GPU, no weights; exact in parameters."""
    with clear_errors():
        from lorank.allocation.files import allocate_file
        from lorank.report.tables import change_table, rank_table, stability_lines

        if model is not None:
            from lorank.runs.score_recipe import check_scores

            check_scores(scores, model)
        limits = {"max_rank": max_rank, "min_rank": min_rank, "multiple_of": multiple_of, "rank_by": rank_by}
        plans = allocate_file(scores, budget.split(","), output, overwrite=overwrite, scale=scale, **limits)
        if len(plans) > 1:
            out.print(change_table(list(plans.values())))
        for plan in plans.values() if len(plans) == 1 else ():
            out.print(rank_table(plan))
            out.print(f"{plan.budget}: {plan.spending}, total rank {plan.total_rank}", highlight=False)
        for path, plan in plans.items():
            for line in stability_lines(plan):
                say(f"{plan.budget}: {line}")
            say(f"rank plan           {path}")


@app.command("train")
def train_command(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe: model, data, stage2, baselines")],
    plan: Annotated[Path, typer.Option(help="plan.json of `lorank allocate` or of a run")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="stage2.epochs=1")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="default: runs/NAME_OF_RECIPE-NAME_OF_PLAN")] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
) -> None:
    """Train, evaluate and save the adapter of a plan. The same command again continues what was stopped."""
    with clear_errors():
        from lorank.plan import RankPlan
        from lorank.recipe.recipe import load_recipe
        from lorank.runs.run import run_plan

        directory = output_dir or Path("runs") / f"{recipe.stem}-{plan.stem}"
        _check_hub(push_to_hub)
        result = run_plan(load_recipe(recipe, overrides or ()), RankPlan.load(plan), directory, progress)
        _print_result(result)
        _push(result, push_to_hub, private)


@app.command("prune")
def prune_command(
    adapter: Annotated[Path, typer.Argument(help="folder of a trained PEFT LoRA adapter")],
    budget: Annotated[str, typer.Option(help='adapter parameters, "2M", "r=4", ...')],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the recipe")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="the recipe that trained it: base model, data to score and to measure on")
    ] = None,
    by: Annotated[str | None, typer.Option(help="path (needs --data, and is its default) or svd")] = None,
    rank_by: Annotated[str, typer.Option(help="score, or score-per-parameter")] = "score",
    max_rank: Annotated[int | None, typer.Option(help="upper limit for every module")] = None,
    output: Annotated[Path, typer.Option(help="new folder")] = Path("pruned"),
) -> None:
    """Make a trained adapter smaller, without training: cut its triplets to a budget, and say what that cost."""
    with clear_errors():
        from lorank.recipe.recipe import load_recipe
        from lorank.report.tables import cost_table, rank_table
        from lorank.runs.prune_adapter import prune_adapter

        recipe = load_recipe(data, overrides or ()) if data is not None else None
        limits: dict[str, Any] = {"rank_by": rank_by, "max_rank": max_rank}
        plan, measured = prune_adapter(adapter, budget, output, recipe, by=by, console=progress, **limits)
        out.print(rank_table(plan))
        out.print(cost_table(measured))
        say(f"pruned adapter      {output / 'adapter'}")


@app.command("inspect")
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


serving.add_to(app)
comparing.add_to(app)

if __name__ == "__main__":
    from lorank.__main__ import main

    main()
