"""From a figure to a PNG or SVG file; names may hold anything, and a run loses nothing where drawing fails."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorank.artefact import write_atomically
from lorank.errors import LorankWarning, OutputError, one_line

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES, _LENGTH = 4, 110
_FORMATS = ("png", "svg")


@contextmanager
def drawing(path: Path) -> Iterator[None]:
    """Draw within this: a failure is said, not raised.

    Warns:
        LorankWarning: the picture could not be drawn or written; results do not depend on it.

    """
    failure = None
    try:
        with plain_text():
            yield
    except Exception as error:  # matplotlib raises many kinds, and no picture is worth a trained adapter
        failure = error
    if failure is not None:
        warnings.warn(
            f"{path} was not drawn ({type(failure).__name__}: {one_line(failure)}); everything else is as it should be",
            LorankWarning,
            stacklevel=4,
        )


@contextmanager
def plain_text() -> Iterator[None]:
    """Figures that are made within this take names as they are, and an SVG of them holds its text as text.

    `$` begins no formula, whatever matplotlib's settings file says, and characters that the font lacks are drawn as boxes. Axes
    show their numbers whole.
    """
    import matplotlib

    plain = {"text.usetex": False, "text.parse_math": False}
    plain |= {"axes.formatter.use_mathtext": False, "axes.formatter.useoffset": False}
    # The same figure gives the same bytes: names inside of an SVG come from this salt.
    with matplotlib.rc_context(plain | {"svg.fonttype": "none", "svg.hashsalt": "lorank"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r".*[Ll]ayout not applied")
        yield


def picture_format(path: Path) -> str:
    """What the ending of a picture's name says: `png` or `svg`.

    Raises:
        OutputError: another ending.

    """
    ending = path.suffix.lower()[1:]
    if ending not in _FORMATS:
        raise OutputError(f"{path}: a picture ends with .png or .svg; give one of the two")
    return ending


def picture_bytes(figure: "Figure", form: str) -> bytes:
    """What the file of a figure holds, `form` being `png` or `svg`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with plain_text():
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG or SVG, by the ending of `path`, atomically.

    Raises:
        OutputError: another ending, found before anything is drawn; or a place that cannot be written to.

    """
    content = picture_bytes(figure, picture_format(path))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


class Sheet:
    """A figure on which things are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float, title: str) -> None:
        from matplotlib.figure import Figure

        self.lines = drawable(title).split("\n")
        self.top = 0.2 + 0.2 * len(self.lines)
        self.width = max(width, 0.3 + 0.083 * max(map(len, self.lines)))
        self.height = height + self.top
        self.figure = Figure(figsize=(self.width, self.height))
        for number, line in enumerate(self.lines):
            y = 1 - (0.12 + 0.2 * number) / self.height
            self.figure.text(0.15 / self.width, y, line, va="top", fontsize=9 if number else 10.5)

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes of this size, `top` counted from below the title."""
        y = self.height - self.top - top - height
        return self.figure.add_axes((left / self.width, y / self.height, width / self.width, height / self.height))


def drawable(text: str) -> str:
    """`text` without characters that cannot be drawn, and no larger than a picture's title has room for."""
    lines = text.encode("utf-8", "replace").decode("utf-8").split("\n")[:_LINES]
    shown = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return "\n".join(line if len(line) <= _LENGTH else f"{line[: _LENGTH - 1]}…" for line in shown)


def pixels(figure: "Figure", dpi: int = 100) -> "np.ndarray":
    """The figure as an image, `(height, width, 3)` uint8."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
