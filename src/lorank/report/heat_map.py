"""One heat map of layers x projections on given axes: colours that say the value, text that can be read on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorank.report.module_grid import ModuleGrid
from lorank.report.picture import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

EMPTY, OUTLINE, MISSING = "#ffffff", "#8c8c8c", "#e4e4e4"
INK = "#262626"
# Of one hue each, from light to dark: the order of values is that of lightness, which every eye sees and a printer keeps.
RANKS, IMPORTANCE = "Blues", "YlOrBr"
_LIGHTEST = 0.2  # of a colour map: what is above zero is never as light as an empty cell
SKEWED = 4.0  # the largest value over the median above which colours follow the logarithm
_LONGEST = 28  # letters of a projection's name
_DECADES = 1e3  # that the logarithm covers; what is smaller has the lightest colour


@dataclass(frozen=True)
class Margin:
    """Numbers beside a map: one for each row, or below it one for each column.

    Attributes:
        title: what they are.
        values: as text.

    """

    title: str
    values: Sequence[str]


@dataclass(frozen=True)
class Paint:
    """How a map is drawn.

    Attributes:
        colours: name of a matplotlib colour map.
        text: of a value, in its cell.
        width: of a cell, in inches.
        height: the same.
        rows: whether layers are named.

    """

    colours: str
    text: Callable[[float], str]
    width: float
    height: float
    rows: bool = True


def colour_scale(values: np.ndarray) -> "tuple[Normalize, str]":
    """From values to 0..1, and what kind of scale that is, in words; one large value does not make all others look alike.

    Linear from zero. Logarithmic where the largest value is more than four times the median of those above zero. With
    negative values the inverse hyperbolic sine: linear around zero, logarithmic far from it.
    """
    from matplotlib.colors import AsinhNorm, LogNorm, Normalize

    finite = values[np.isfinite(values)]
    above = finite[finite > 0]
    if (finite < 0).any():
        return AsinhNorm(float(np.median(np.abs(finite[finite != 0]))), finite.min(), max(0.0, finite.max())), "asinh"
    if not above.size:
        return Normalize(0, 1), ""
    if above.max() > SKEWED * np.median(above):
        return LogNorm(max(above.min(), above.max() / _DECADES), above.max(), clip=True), "logarithmic"
    return Normalize(0, above.max()), ""


def colour_map(name: str) -> Any:
    """A colour map of matplotlib without its lightest part, which could be taken for an empty cell."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[name](np.linspace(_LIGHTEST, 1, 256)))


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast ratio of two sRGB colours with channels 0..1, from 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[float]) -> float:
    channels = np.array(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def draw_heat_map(
    axes: "Axes", grid: ModuleGrid, values: np.ndarray, norm: "Normalize", paint: Paint
) -> "ScalarMappable":
    """Draw a cell for every value.

    A value of zero is a white cell with an outline, a place without a module is hatched and has no number. Text is black or
    white, whichever has more contrast: at least 4.58 on any colour.

    Args:
        axes: what is drawn on.
        grid: names of rows and columns.
        values: `(rows, columns)`, NaN where there is no module.
        norm: of `colour_scale`.
        paint: colours, text and size.

    Returns:
        What a colour bar is made of.

    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    colours = colour_map(paint.colours)
    coloured = np.ma.masked_where(~np.isfinite(values) | (values == 0), values)
    mesh = axes.pcolormesh(coloured, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
    pad_x, pad_y = 0.03 / paint.width, 0.03 / paint.height
    looks: list[tuple[np.ndarray, dict[str, Any]]] = [
        (values == 0, {"facecolor": EMPTY, "edgecolor": OUTLINE, "linewidth": 0.6}),
        (np.isnan(values), {"facecolor": MISSING, "edgecolor": "white", "linewidth": 0, "hatch": "/////"}),
    ]
    for kind, style in looks:
        places = [(column + pad_x, row + pad_y) for row, column in np.argwhere(kind)]
        boxes = [Rectangle(place, 1 - 2 * pad_x, 1 - 2 * pad_y) for place in places]
        axes.add_collection(PatchCollection(boxes, **style))
    behind = colours(norm(coloured))
    behind[values == 0] = 1
    _write_numbers(axes, values, behind, paint)
    for start in grid.starts:
        axes.axhline(start, color=INK, linewidth=1.2)
    axes.set_ylim(len(grid.rows), 0)
    axes.set_xlim(0, len(grid.columns))
    columns = [short(name) for name in grid.columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=9)
    axes.tick_params(length=0, labelcolor=INK, top=False, labeltop=True, labelbottom=False)
    if tilted_length(grid, paint.width):
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="left", rotation_mode="anchor")
    rows = [drawable(name) for name in grid.rows] if paint.rows else []
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=min(9, paint.height * 72 * 0.75))
    axes.spines[:].set_visible(False)
    return mesh


def short(name: str) -> str:
    """Name of a projection as there is room for it: the end of a long one."""
    lines = drawable(name).split("\n")
    return "\n".join(line if len(line) <= _LONGEST else f"…{line[1 - _LONGEST :]}" for line in lines)


def tilted_length(grid: ModuleGrid, width: float) -> int:
    """Letters of the longest name of a projection, where one is wider than a cell so that all are tilted; else 0."""
    longest = max(len(line) for name in grid.columns for line in short(name).split("\n"))
    return longest if longest * 0.075 > width else 0


def _write_numbers(axes: "Axes", values: np.ndarray, behind: np.ndarray, paint: Paint) -> None:
    texts = {(row, column): paint.text(values[row, column]) for row, column in np.argwhere(np.isfinite(values))}
    longest = max(map(len, texts.values()), default=1)
    size = min(9.0, paint.height * 72 * 0.62, paint.width * 72 * 0.9 / (0.62 * longest))
    for cell, text in texts.items():
        colour = max(("black", "white"), key=lambda name: contrast((name == "white",) * 3, behind[cell]))
        axes.text(cell[1] + 0.5, cell[0] + 0.53, text, ha="center", va="center", color=colour, fontsize=size)


def draw_margins(axes: "Axes", below: Sequence[Margin], beside: Sequence[Margin], paint: Paint) -> None:
    """Write numbers below the columns and beside the rows of a map, outside of its axes."""
    rows, columns = int(axes.get_ylim()[0]), int(axes.get_xlim()[1])
    style: dict[str, Any] = {
        "color": INK,
        "clip_on": False,
        "va": "center",
        "fontsize": min(8.0, paint.height * 72 * 0.62),
    }
    heading = {**style, "fontsize": 8.0}
    gap = 0.06 / paint.height
    for number, margin in enumerate(below):
        y = rows + gap + (number + 0.5) * 0.18 / paint.height
        axes.text(-0.08 / paint.width, y, margin.title, ha="right", **heading)
        for column, text in enumerate(margin.values):
            axes.text(column + 0.5, y, text, ha="center", **heading)
    for number, margin in enumerate(beside):
        x = columns + (0.3 + 0.55 * number) / paint.width
        axes.text(x, -0.12 / paint.height, margin.title, ha="center", **heading | {"va": "bottom"})
        for row, text in enumerate(margin.values):
            axes.text(x, row + 0.53, text, ha="center", **style)
