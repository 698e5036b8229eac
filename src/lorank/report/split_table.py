"""A table that stays readable in a narrow terminal."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich import box
from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lorank.errors import as_seen

_LONGEST = 2_000  # characters of a cell
_PROSE, _HEADING = 26, 12  # columns of the terminal: for sentences at least, for a line of a heading at most


class SplitTable:
    """A table that is split between its columns where the terminal is narrower: no cell is cut, no number is wrapped.

    First headings are written in several lines. If that is not enough, the table is shown in parts, and the first columns stand
    in each of them. Only sentences are wrapped, and what does not fit into a part alone.

    Args:
        title: above the table.
        columns: headings; cells below are shown as they are, without markup.
        repeated: how many columns say what a row is about.
        prose: headings of columns of sentences, which are left-justified and may be wrapped.
        frame: how it is drawn.

    """

    def __init__(
        self,
        title: str | None,
        columns: Sequence[str],
        *,
        repeated: int = 1,
        prose: Sequence[str] = (),
        frame: Box = box.HEAVY_HEAD,
    ) -> None:
        self.title, self.columns, self.repeated, self.prose, self.frame = title, columns, repeated, prose, frame
        self.rows: list[tuple[Sequence[str], str | None]] = []

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """Add a row, a string for each column."""
        self.rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Give the parts, from left to right."""
        columns = list(range(self.repeated, len(self.columns)))

        def fits(part: Sequence[int], lines: bool) -> bool:
            table = self._part(part, None, lines, with_prose=False)
            return Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width

        lines = not fits(columns, False)
        parts: list[list[int]] = []
        for column in columns:
            if parts and fits([*parts[-1], column], lines):
                parts[-1].append(column)
            else:
                parts.append([column])
        ends = [len(columns) * number // len(parts) for number in range(len(parts) + 1)]
        even = [columns[start:end] for start, end in pairwise(ends)]
        if all(fits(part, lines) for part in even):
            parts = even
        for number, part in enumerate(parts):
            yield self._part(part, None if number else self.title, lines)

    def _part(self, columns: Sequence[int], title: str | None, lines: bool, with_prose: bool = True) -> Table:
        table = Table(title=title, title_justify="left", box=self.frame, pad_edge=self.frame is not box.SIMPLE_HEAD)
        chosen = [*range(self.repeated), *columns]
        some_prose = any(self.columns[column] in self.prose for column in chosen)
        for column in chosen:
            name = as_seen(self.columns[column], "\n")[:_LONGEST]
            prose = self.columns[column] in self.prose
            table.add_column(
                Text(_in_lines(name) if lines and not prose else name),
                justify="right" if column >= self.repeated and not prose else "left",
                overflow="fold",  # not cut, where even one column does not fit
                no_wrap=some_prose and not prose,
                min_width=_PROSE if prose else None,
            )
        for cells, style in self.rows:
            shown = (cells[column] if with_prose or self.columns[column] not in self.prose else "" for column in chosen)
            table.add_row(*(Text(as_seen(cell, "\n")[:_LONGEST]) for cell in shown), style=style)
        return table


def _in_lines(heading: str) -> str:
    """Break a heading at spaces and behind dots."""
    return "\n".join(textwrap.wrap(heading.replace(".", ". "), _HEADING, break_long_words=False)).replace(". ", ".")
