"""`lorank methods`: what there is to choose from."""

from lorank.cli.options import Json, Plugin
from lorank.console import clear_errors, document, out


def methods_command(json: Json = None, plugin: Plugin = None) -> None:
    """List the methods: presets, the default first, what decides the ranks, and where each is published.

    Methods of installed packages (entry points of the group lorank.methods) and of --plugin are among them.
    """
    with clear_errors(), document(json) as write:
        from lorank.methods import METHODS
        from lorank.report.split_table import SplitTable

        table = SplitTable(
            "methods", ("method", "presets", "looks at", "reference"), prose=("presets", "looks at", "reference")
        )
        listed = []
        for method in METHODS.values():
            presets = sorted(method.presets, key=lambda name: name != method.default_preset)
            table.add_row(method.name, ", ".join(presets), method.looks_at, method.reference)
            listed.append(
                {"name": method.name, "presets": presets, "looks_at": method.looks_at, "reference": method.reference}
            )
        out.print(table)
        out.print(
            'In Python, lorank.score(method="probe") gives scores before training by a short search of I-LoRA.',
            highlight=False,
        )
        write({"methods": listed})
