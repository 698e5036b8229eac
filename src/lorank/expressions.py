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
# Literals, classes of characters, and at most two simple repeats take no time, whatever they are matched with.
_HARMLESS = re.compile(r"(?:[\w.^$-]|\\[\W\dwdsb])*(?:(?:\.|\\[dws])[*+](?:[\w.^$-]|\\[\W\dwdsb])*){0,2}")
# As PEFT matches: the whole name, or its end from a dot on. A form that does not compile is refused by whoever compiles it.
_TRY = """
import json, re, sys
given = json.load(sys.stdin)
for number, text in enumerate(given["expressions"]):
    print(number, flush=True)
    for form, match in ((text, re.fullmatch), (rf"(.*\\.)?({text})$", re.match), (rf"(^|.*\\.){text}($|\\..*)", re.match)):
        try:
            pattern = re.compile(form)
        except re.error:
            continue
        for name in given["names"]:
            match(pattern, name)
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

    Names, and patterns with up to two simple repeats (`.*`, `\\d+`), take no time and are not tried.

    Raises:
        ValueError: names the first expression that takes too long.

    """
    risky = [text for text in dict.fromkeys(expressions) if not _HARMLESS.fullmatch(text)]
    if not risky or not names:
        return
    given = json.dumps({"expressions": risky, "names": list(names)})
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _TRY]
    try:
        done = subprocess.run(command, input=given, text=True, timeout=SECONDS, check=False, capture_output=True)
    except subprocess.TimeoutExpired as ended:
        said = ended.stdout or b"0"
        number = (said.decode() if isinstance(said, bytes) else said).split()[-1]
        text = risky[int(number)]
        raise ValueError(
            f"{text[:80]!r}{'...' if len(text) > 80 else ''} takes longer than {SECONDS:g} s to match with the names of "
            f"{len(names):,} modules: repeats inside of repeats, or many in a row, try every way; give a list of names"
        ) from None
    if done.returncode != 0:
        raise ValueError(f"expressions could not be tried: {done.stderr.strip()[-200:]}")
