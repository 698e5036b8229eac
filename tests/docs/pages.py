"""Pages, and what is in them."""

import re
from pathlib import Path
from typing import NamedTuple

PAGES = [
    *(Path(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(Path("docs").glob("*.md")),
    *(page for folder in ("recipes", "src") for page in sorted(Path(folder).rglob("README.md"))),
    *sorted(Path("results").rglob("*.md")),
]


class Block(NamedTuple):
    """A fenced block of a page; `why_not` is what `<!-- not run: ... -->` in the line above it says."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    form = r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$"
    return [
        Block(page, text[: found.start("language")].count("\n") + 1, found["language"], found["text"], found["why"])
        for found in re.finditer(form, text, re.M | re.S)
    ]


def prose(page: Path) -> str:
    """A page without its blocks and its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`code`", text)
