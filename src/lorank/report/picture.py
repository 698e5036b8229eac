"""Drawing a picture from names that may hold anything, without losing what was computed when drawing fails."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorank.errors import LorankWarning, one_line

_LINES, _LENGTH = 4, 110


@contextmanager
def drawing(path: Path) -> Iterator[None]:
    """Draw within this: names are taken as they are, and a failure is said, not raised.

    `$` begins no formula, whatever matplotlib's settings file says, and characters that the font lacks are drawn as boxes.

    Warns:
        LorankWarning: the picture could not be drawn or written; results do not depend on it.

    """
    import matplotlib

    plain = {"text.usetex": False, "text.parse_math": False, "axes.formatter.use_mathtext": False}
    failure = None
    with matplotlib.rc_context(plain), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r".*[Ll]ayout not applied")
        try:
            yield
        except Exception as error:  # matplotlib raises many kinds, and no picture is worth a trained adapter
            failure = error
    if failure is not None:
        warnings.warn(
            f"{path} was not drawn ({type(failure).__name__}: {one_line(failure)}); everything else is as it should be",
            LorankWarning,
            stacklevel=4,
        )


def drawable(text: str) -> str:
    """`text` without characters that cannot be drawn, and no larger than a picture's title has room for."""
    lines = text.encode("utf-8", "replace").decode("utf-8").split("\n")[:_LINES]
    shown = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return "\n".join(line if len(line) <= _LENGTH else f"{line[: _LENGTH - 1]}…" for line in shown)
