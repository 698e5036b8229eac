"""`lorank doctor`: whether lorank works here, and what a bug report needs."""

from typing import Annotated

import typer

from lorank.cli.options import Json
from lorank.console import clear_errors, document, out, say


def doctor_command(
    test: Annotated[
        bool, typer.Option(help="score, train, cut, save and read a tiny model on each kind of device")
    ] = True,
    json: Json = None,
) -> None:
    """Check this installation: versions beside those that are supported, devices, a small training; text for a bug report."""
    with clear_errors(), document(json) as write:
        from dataclasses import asdict

        from lorank.doctor.environment import machine, packages
        from lorank.report.split_table import SplitTable

        table = SplitTable("versions", ("package", "installed", "supported", "verdict"), prose=("verdict",))
        found = packages()
        for one in found:
            supported = f"{one.lowest} to {one.newest}" if one.lowest else ""
            table.add_row(one.name, one.installed or "-", supported, one.verdict)
        out.print(table)
        computer = machine()
        for key, value in computer.items():
            say(f"{key:<20}{value}")
        outcomes = []
        if test:
            import torch

            from lorank.doctor.self_test import self_test

            for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
                for outcome in self_test(device):
                    outcomes.append(outcome)
                    say(
                        f"{'ok' if outcome.right else 'FAILED':<7}{outcome.name}: {outcome.said} ({outcome.seconds:.1f} s)"
                    )
        say("\nFor a bug report (no paths, names or secrets are in it):\n")
        say("```")
        say(", ".join(f"{one.name} {one.installed}" for one in found if one.installed))
        say("; ".join(f"{key} {value}" for key, value in computer.items()))
        for outcome in outcomes:
            say(f"{'ok' if outcome.right else 'FAILED'} {outcome.name}: {outcome.said}")
        say("```")
        write({"packages": found, "machine": computer, "self_test": [asdict(one) for one in outcomes]})
        if not all(outcome.right for outcome in outcomes):
            raise typer.Exit(1)
