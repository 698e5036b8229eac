"""Regular expressions that a user or a stranger's file gave: compiled, and tried in bounded time.

Python's `re` cannot be stopped, and PEFT uses it too. So an expression that may take very long is tried first on the names of
the model's modules, in a process of its own that can be ended.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable

LONGEST = 4000  # characters; a list of all modules of a large model is longer, and is given as a list
SECONDS = 5.0
_REPEAT = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|([*+]|\{\d*,?\d*\})|(\)[*+{])", re.DOTALL)
# As PEFT matches: the whole name, or its end from a dot on.
_TRY = """
import json, re, sys
given = json.load(sys.stdin)
for text in given["expressions"]:
    for name in given["names"]:
        re.fullmatch(text, name), re.match(rf"(.*\\.)?({text})$", name), re.match(rf"(^|.*\\.){text}($|\\..*)", name)
"""


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

    Those with up to two simple repeats (`.*`, `x+`) take no time and are not tried.

    Raises:
        ValueError: names the first expression that takes too long.

    """
    risky = [text for text in dict.fromkeys(expressions) if _is_risky(text)]
    if not risky or not names:
        return
    given = json.dumps({"expressions": risky, "names": list(names)})
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", _TRY], input=given, text=True, timeout=SECONDS, check=True)
    except subprocess.TimeoutExpired:
        shown = risky[0] if len(risky[0]) <= 80 else f"{risky[0][:80]}..."
        raise ValueError(
            f"{shown!r}{' or another one' if len(risky) > 1 else ''} takes longer than {SECONDS:g} s to match with the names of "
            f"{len(names):,} modules: repeats inside of repeats, or many in a row, try every way; give a list of names"
        ) from None


def _is_risky(text: str) -> bool:
    """Whether a group is repeated, or more than two repeats stand in a row: the time may grow with a high power of the length."""
    repeats = 0
    for found in _REPEAT.finditer(text):
        if found[2]:
            return True
        repeats += found[1] is not None
    return repeats > 2
