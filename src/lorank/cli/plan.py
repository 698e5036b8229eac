"""`lorank allocate` makes rank plans; `lorank plan` shows them, compares them, and hands them over to other tools."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorank.cli.options import Json, RemoteCode
from lorank.console import clear_errors, document, out, say
from lorank.serving.names import TOOLS, choose


def allocate_command(
    scores: Annotated[Path, typer.Argument(help="scores.safetensors of `lorank score` or of a run")],
    budget: Annotated[
        str | None, typer.Option(help='adapter parameters, "8.8M", "r=8", ...; several: "1M,2M,4M"')
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=BUDGET",
            help="in place of --budget one for each group of modules: a part of their names, vision_model=r=2; repeatable",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="with several budgets: plan-1M.json, ...")] = Path("plan.json"),
    max_rank: Annotated[int | None, typer.Option(help="upper limit for every module")] = None,
    min_rank: Annotated[int, typer.Option(help="lower limit for every module")] = 0,
    multiple_of: Annotated[int, typer.Option(help="every rank is a multiple of this")] = 1,
    within: Annotated[
        float | None,
        typer.Option(
            help="2: no module below half or above twice the mean rank; inf: no such bounds; default: as the scores' preset or "
            "recipe says"
        ),
    ] = None,
    rank_by: Annotated[
        str | None,
        typer.Option(help="score, or score-per-parameter; default: that of the run that was scored in, or score"),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="alpha / r of every adapter; default: the recipe's that was scored, or 2")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="hub name or folder: check from its config that the scores are of this model")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace plans of that name that differ")] = False,
    json: Json = None,
) -> None:
    """Make rank plans from scores: no GPU, no weights; exact in parameters."""
    with clear_errors(), document(json) as write:
        from lorank.allocation.files import allocate_file, asked_budgets
        from lorank.report.numbers import plan_numbers
        from lorank.report.tables import change_table, group_table, hessian_lines, rank_table, stability_lines

        budgets = asked_budgets(budget, group or ())

        if model is not None:
            from lorank.runs.score_recipe import check_scores

            check_scores(scores, model)
        limits = {"max_rank": max_rank, "min_rank": min_rank, "multiple_of": multiple_of, "within": within}
        more: dict[str, Any] = {"rank_by": rank_by, "scale": scale, **limits}
        plans = allocate_file(scores, budgets, output, overwrite=overwrite, **more)
        if len(plans) > 1:
            out.print(change_table(list(plans.values())))
        for plan in plans.values() if len(plans) == 1 else ():
            out.print(rank_table(plan))
            if (groups := group_table(plan)) is not None:
                out.print(groups)
            out.print(f"{plan.budget}: {plan.spending}, total rank {plan.total_rank}", highlight=False)
        for line in hessian_lines(next(iter(plans.values()))):
            say(line)
        if within is None and (bound := next(iter(plans.values())).provenance.get("within")):
            say(
                f"bounded as the scores' preset or recipe says: within {bound:g} times the mean rank; --within inf: no bounds"
            )
        for path, plan in plans.items():
            for line in stability_lines(plan):
                say(f"{plan.budget}: {line}")
            say(f"rank plan           {path}")
        write({"plans": [{"file": path, **plan_numbers(plan)} for path, plan in plans.items()]})


plan_app = typer.Typer(help="Look at rank plans, and hand them over to other tools.", no_args_is_help=True)


@plan_app.command("show")
def plan_show_command(
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    picture: Annotated[Path | None, typer.Option(help="also draw the ranks: name of a .png or .svg")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="scores.safetensors that the plan was made from: the picture shows importance beside ranks"),
    ] = None,
    cuts: Annotated[
        Path | None,
        typer.Option(help="cuts.jsonl of the same run: the picture shows ranks before, after and over time"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a picture of that name that differs")] = False,
    json: Json = None,
) -> None:
    """Show a plan: ranks by layer and projection, mean ranks, what it spends, where it comes from; with --picture also drawn."""
    with clear_errors(), document(json) as write:
        from lorank.plan import RankPlan
        from lorank.report.numbers import plan_numbers
        from lorank.report.tables import group_table, hessian_lines, rank_table, stability_lines, summary_table

        loaded = RankPlan.load(plan)
        if picture is not None or scores is not None or cuts is not None:
            from lorank.report.plan_picture import write_plan_picture

            write_plan_picture(loaded, picture, scores=scores, cuts=cuts, overwrite=overwrite)
        out.print(rank_table(loaded))
        out.print(summary_table(loaded))
        if (groups := group_table(loaded)) is not None:
            out.print(groups)
        say(f"{loaded!r}")
        for line in [*hessian_lines(loaded), *stability_lines(loaded)]:
            say(line)
        if picture is not None:
            say(f"picture             {picture}")
        write({"file": plan, **plan_numbers(loaded)})


@plan_app.command("diff")
def plan_diff_command(
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    other: Annotated[Path, typer.Argument(help="plan.json")],
    json: Json = None,
) -> None:
    """Show what changes from one plan to another of the same model."""
    with clear_errors(), document(json) as write:
        from lorank.plan import RankPlan
        from lorank.report.numbers import difference_numbers
        from lorank.report.tables import difference_table

        one, two = RankPlan.load(plan), RankPlan.load(other)
        found = difference_numbers(one, two)
        out.print(difference_table(one, two))
        say(f"first:  {one!r}")
        say(f"second: {two!r}")
        say(
            f"{found['changed_modules']} of {len(one.ranks)} ranks differ; the second spends {found['spent_difference']:+,} "
            f"parameters, and {100 * found['moved_share']:.1f} % of the first's on other modules or not at all"
        )
        write(found)


@plan_app.command("export")
def plan_export_command(
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    to: Annotated[str, typer.Option(help=", ".join(TOOLS))],
    output: Annotated[
        Path | None,
        typer.Option(help="folder of the seed adapter (default: seed-adapter), or file of a snippet (printed)"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="base model; default: the one that was scored")] = None,
    task_type: Annotated[str, typer.Option(help="of the seed adapter, as PEFT names it")] = "CAUSAL_LM",
    num_labels: Annotated[
        int | None, typer.Option(min=1, help="of the seed adapter's head; default: the model's config")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the file of a snippet; never a folder")] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Hand a plan over: the configuration of another tool, or an initialised adapter that it continues to train."""
    with clear_errors():
        choose("tool", to, TOOLS)
        from lorank.plan import RankPlan
        from lorank.serving.handover import hand_over

        options: dict[str, Any] = {"num_labels": num_labels, "trust_remote_code": trust_remote_code}
        options["overwrite"] = overwrite
        text, seed = hand_over(RankPlan.load(plan), to, output, model, task_type=task_type, **options)
        if text and (seed is not None or output is None):
            print(text, end="")
        if seed is not None:
            typer.echo(f"seed adapter        {seed}", err=True)
        elif output is not None:
            typer.echo(f"for {to:<16}{output}", err=True)
