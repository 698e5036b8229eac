"""Names and sentences in Markdown: whatever they hold, no heading, link, tag, table or list comes out of them."""

import re
import shlex
from collections.abc import Sequence

from lorank.errors import as_seen, in_short

_MOST = 300  # characters of a name
# What begins something in Markdown wherever it stands; an underscore within a word does not.
_SIGNS = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w)|(?<!\w)_|_(?!\w)|@(?=\w)|(?<=:)/(?=/)")


def prose(text: str) -> str:
    """Text that means itself, also where it begins a line."""
    shown = inline(text)
    number = re.match(r"\d*", shown)
    place = number.end() if number else 0
    begins = shown[place : place + 1] in (("#", "+", "-", "=") if place == 0 else (".", ")"))
    return f"{shown[:place]}\\{shown[place:]}" if begins and shown[place : place + 1] else shown


def inline(text: str) -> str:
    """Text that means itself within a line, or in a cell of a table."""
    return _SIGNS.sub(lambda found: f"\\{found[0]}", in_short(text, _MOST))


def code(text: str) -> str:
    """Text as code, within a line."""
    seen = in_short(text, _MOST)
    fence = "`" * (max(map(len, re.findall("`+", seen)), default=0) + 1)
    blank = " " if seen[:1] in ("`", " ", "") or seen[-1:] in ("`", " ") else ""
    return f"{fence}{blank}{seen}{blank}{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table; cells are Markdown.

    Args:
        columns: headings.
        rows: a cell for each of them.
        numbers: right-justify all columns but the first.

    """
    rules = ["---", *("---:" if numbers else "---" for _ in columns[1:])]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in (columns, rules, *rows))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table whose cells mean themselves."""
    return table(list(map(inline, columns)), [list(map(inline, row)) for row in rows], numbers=numbers)


def _cell(text: str) -> str:
    """A cell: a bar would end it, in code too."""
    return re.sub(r"(?<!\\)\|", r"\\|", as_seen(text))


def in_shell(word: str) -> str:
    """A word as the shell reads it, in one line, whatever is in it; one that begins with a hyphen is no option."""
    word = f"./{word}" if word.startswith("-") else word
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + as_seen(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
