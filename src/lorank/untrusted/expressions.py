"""Regular expressions that a user or a stranger's file gave: compiled, and tried in bounded time.

Python's `re` cannot be stopped, and PEFT uses it too. So an expression that may take very long is tried first on the names of
the model's modules, in a process of its own that can be ended.
"""

import json
import re
from collections.abc import Collection, Iterable

from lorank.untrusted.limited_process import SECONDS, try_limited

LONGEST = 4000  # characters; a list of all modules of a large model is longer, and is given as a list
# Literals, classes of characters, and at most two simple repeats take no time, whatever they are matched with.
_HARMLESS = re.compile(r"(?:[\w.^$-]|\\[\W\dwdsb])*(?:(?:\.|\\[dws])[*+](?:[\w.^$-]|\\[\W\dwdsb])*){0,2}")


def compiled(expression: str) -> re.Pattern[str]:
    """The expression, compiled.

    Raises:
        ValueError: it is none, or too long or too deep to be one; says why, without the text itself.

    """
    if len(expression) > LONGEST:
        raise ValueError(
            f"it has {len(expression):,} characters, and at most {LONGEST:,} are read: give a list of names"
        )
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(str(error)) from None
    except (RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"it is too deep or too large ({type(error).__name__})") from None


def check_time(expressions: Iterable[str], names: Collection[str]) -> None:
    """Refuse expressions that cannot be matched with these names in a few seconds, such as `(a+)+!`.

    Names, and patterns with up to two simple repeats (`.*`, `\\d+`), take no time and are not tried.

    Raises:
        ValueError: names the first expression that takes too long; or they could not be tried.

    """
    risky = [text for text in dict.fromkeys(expressions) if not _HARMLESS.fullmatch(text)]
    if not risky or not names:
        return
    try:
        tried = try_limited("expressions", map(json.dumps, risky), {"names": list(names)}, seconds=SECONDS)
    except RuntimeError as error:
        raise ValueError(f"expressions could not be tried: {error}") from None
    if tried.over is not None:
        text = risky[max(tried.number, 0)]
        raise ValueError(
            f"{text[:80]!r}{'...' if len(text) > 80 else ''} {tried.over} to match with the names of "
            f"{len(names):,} modules: repeats inside of repeats, or many in a row, try every way; give a list of names"
        )
