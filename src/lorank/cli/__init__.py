"""The command line: parses, calls one function, prints. `lorank --help` loads neither torch nor transformers."""

from typing import Annotated

import typer

from lorank.cli.compare import compare_command
from lorank.cli.doctor import doctor_command
from lorank.cli.evaluate import evaluate_command
from lorank.cli.headroom import headroom_command
from lorank.cli.init import init_command
from lorank.cli.inspect import inspect_command
from lorank.cli.methods import methods_command
from lorank.cli.options import NamesMethods
from lorank.cli.plan import allocate_command, plan_app
from lorank.cli.prune import prune_command
from lorank.cli.recipe import recipe_app, recipes_app
from lorank.cli.report import report_command
from lorank.cli.run import run_command, train_command
from lorank.cli.score import score_command
from lorank.cli.serve import export_command, merge_command, verify_command
from lorank.cli.suggest import suggest_command
from lorank.cli.sweep import sweep_command
from lorank.console import CommandLine

app = typer.Typer(
    cls=CommandLine,
    help="Adaptive-rank LoRA: which layer gets which rank, inside an exact parameter budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lorank {version('lorank')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    pass


# In the order of `lorank --help`.
app.command("init")(init_command)
app.command("run")(run_command)
app.command("score", cls=NamesMethods)(score_command)
app.command("allocate")(allocate_command)
app.command("train")(train_command)
app.command("prune")(prune_command)
app.command("evaluate")(evaluate_command)
app.command("suggest")(suggest_command)
app.command("inspect")(inspect_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.command("merge")(merge_command)
app.add_typer(plan_app, name="plan")
app.command("report")(report_command)
app.command("headroom")(headroom_command)
app.command("compare", cls=NamesMethods)(compare_command)
app.command("sweep", cls=NamesMethods)(sweep_command)
app.command("methods")(methods_command)
app.command("doctor")(doctor_command)
app.add_typer(recipes_app, name="recipes")
app.add_typer(recipe_app, name="recipe")
