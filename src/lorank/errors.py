"""One family of errors: every message says what was got, what is allowed, and what to do.

Messages name what files hold: values are shown short, and nothing in a message steers a terminal.
"""

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

_LONGEST_LINE, _MOST_LINES = 2_000, 100  # of a message


def as_seen(text: str, keep: str = "") -> str:
    """The text with characters that cannot be seen as Python writes them; line ends and what steers a terminal among them.

    Args:
        text: from a file, or a name.
        keep: characters that stay.

    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else repr(one)[1:-1] for one in text)


def in_short(text: str, most: int = 80) -> str:
    """The text as it is seen, in one line, without its end where it is long."""
    seen = as_seen(text[: most + 1])
    return seen if len(text) <= most and len(seen) <= most else f"{seen[:most]}..."


class _Shown(reprlib.Repr):
    """`repr` in bounded time: of a value of any size, at any depth."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, most, most

    def repr_int(self, x: int, level: int) -> str:
        """Digits of a number that has few; Python writes none of thousands of digits."""
        return repr(x) if abs(x) < 10**30 else f"a number of about {int(x.bit_length() * 0.30103) + 1:,} digits"


def shown(value: Any, most: int = 80) -> str:
    """A value of a file as Python writes it, in short, to stand in a message."""
    return in_short(_Shown(most).repr(value), most)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names, with commas between them: the first of many, each in short; `none` where there are none."""
    known = list(names)
    said = ", ".join(in_short(str(name)) for name in islice(known, most))
    return f"{said} and {len(known) - most:,} more" if len(known) > most else said or "none"


class _Said(Exception):
    """A message that is safe to print: no endless line, and no character that cannot be seen."""

    def __str__(self) -> str:
        lines = super().__str__().split("\n")
        more = [f"... and {len(lines) - _MOST_LINES:,} more lines"] if len(lines) > _MOST_LINES else []
        return "\n".join([*(in_short(line, _LONGEST_LINE) for line in lines[:_MOST_LINES]), *more])


class LorankError(_Said):
    """Base class of every error that lorank raises on purpose."""


class BudgetError(LorankError):
    """A budget that cannot be read, or that this model cannot honour. Every message ends with the forms that there are."""

    FORMS = (
        '"0.33M" (adapter parameters), "0.06%" (of the base model), "r=2", "rank=144", "keep=50%" or "beta=0.5" (of the '
        "initial ranks)"
    )

    def __init__(self, message: str) -> None:
        # What was pickled is whole already.
        super().__init__(message if self.FORMS in message else f"{message}; a budget is {self.FORMS}")


class TargetError(LorankError):
    """A choice of modules that matches nothing that can be adapted."""


class ScoresError(LorankError):
    """Importance scores that are not usable: not finite, damaged file, another model."""


class PlanError(LorankError):
    """A rank plan that is not usable: damaged file, ranks that do not fit."""


class AllocationError(LorankError):
    """Limits that no rank plan can honour."""


class AdapterError(LorankError):
    """An adapter that is not in the state that was asked for."""


class RecipeError(LorankError):
    """A recipe, or options of RankAllocation, with an unknown key, a bad value, or choices that contradict each other."""


class DataError(LorankError):
    """Data that cannot be trained on: missing file or column, bad labels, too few examples."""


class TrainingError(LorankError):
    """Training that cannot go on, such as a loss that is not finite."""


class ComparisonError(LorankError):
    """A comparison that cannot be made: unknown methods, cells that do not match, too little to compare."""


class OutputError(LorankError):
    """An output directory that belongs to another run."""


class LorankWarning(_Said, UserWarning):
    """Something legal that is probably not what was meant."""


def one_line(error: BaseException | str, most: int = 300) -> str:
    """What another package said, as part of a message of ours: in one line, and not endless."""
    return in_short(" ".join(str(error)[: 10 * most].split()), most)
