"""Write docs/commands.md from the commands themselves: `python docs/write_commands_page.py`. A test keeps the page current."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from lorank.cli import app
from lorank.methods import METHODS

HEAD = """# Commands

All commands, their arguments and their options, as `lorank COMMAND --help` shows them. This page is written from the code by
`python docs/write_commands_page.py`. What the keys of a recipe mean is in [recipe.md](recipe.md).

A command checks what it was given before it starts long work. It ends with exit code 0 when it did what was asked, with 1 when
it did not, and with 2 when its options are wrong. `run`, `train`, `suggest`, `headroom`, `compare` and `sweep` continue what was
stopped when they are called again in the same way.
"""


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Full names and commands, those of groups too; in the order of `--help`."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    for word, one in (inner or {}).items():
        yield from commands(one, f"{name} {word}")


def usage(name: str, command: Any) -> str:
    """The command line: `lorank run [OPTIONS] RECIPE [KEY=VALUE]...`."""
    words = [name, "[OPTIONS]"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = parameter.metavar or parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required or parameter.metavar else f"[{word}]")
    return " ".join(words)


def row(parameter: Any) -> str:
    """One argument or option, as a row of a table."""
    if parameter.param_type_name == "argument":
        names = f"`{_cell(parameter.metavar or parameter.name.upper())}`"
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
        names = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if parameter.required:
        default = "(needed)"
    elif default is None or callable(default) or default is False:
        default = ""
    else:
        default = f"`{default}`"
    return f"| {names} | {default} | {_cell(parameter.help or '')} |"


def _cell(text: str) -> str:
    scorers = [name for name, method in METHODS.items() if method.scorer is not None]
    text = text.replace("{scorers}", ", ".join(scorers)).replace("{methods}", ", ".join(METHODS))
    return re.sub(r"(?<!`)(--[a-z][\w-]*)", r"`\1`", text).replace("|", "\\|").replace("\n", " ")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for name, command in commands(get_command(app), "lorank"):
        lines += [f"## {name}", "", _paragraphs(command.help), "", "```text", usage(name, command), "```", ""]
        shown = [parameter for parameter in command.params if not parameter.hidden]
        if shown:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *map(row, shown), ""]
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page(), encoding="utf-8")
