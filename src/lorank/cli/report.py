"""`lorank report`."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from lorank.console import clear_errors, say


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="output directories of runs, finished or not")],
    output: Annotated[
        Path | None, typer.Option(help="default: report.html in the folder of the run; of several runs in this folder")
    ] = None,
    figures: Annotated[bool, typer.Option(help="write every figure as PNG and SVG beside it")] = True,
) -> None:
    """Write one HTML page about a run, or about several side by side. It needs no network."""
    with clear_errors():
        from lorank.errors import LorankWarning
        from lorank.page.page import REPORT, write_page
        from lorank.page.run_folder import read_run

        read = [read_run(folder) for folder in runs]
        default = runs[0] / REPORT if len(runs) == 1 else Path(REPORT)
        say(f"{'report':<20}{write_page(read, output or default, figures=figures)}")
        for run in read:
            for note in run.notes:
                warnings.warn(f"{run.folder}: {note}", LorankWarning, stacklevel=1)
