"""One rule for labels: which class a value stands for, in which order classes are, and when there is no label.

What a value names:

- **A string is itself**: `007` is not `7`, `1E2` is not `100`.
- **A whole number is its digits**, at any size: `1`, `1.0` (a float that is whole) and `"1"` are the same class. Where *every*
  class of the training data is spelled as a whole number, strings such as `1.0` are whole numbers too, as pandas writes them, and
  classes are in order of size; else they are in order of their names.
- **A boolean is `False` or `True`**, in this order, as Python and pandas write it. Beside numbers they are refused.
- **A declared ClassLabel is the name of its class**, and classes are in its order. Beside it, in the other part, plain values
  are names too; plain whole numbers count classes where no name is a whole number.
- **Missing** are null, NaN, a string without a character that can be seen, -1 of a ClassLabel, and, among labels that are all
  numbers, strings such as `nan`, `None` or `NULL`.
"""

import difflib
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lorank.errors import DataError, LorankWarning, listed, shown
from lorank.tasks.files import Rows

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# How Python, pandas, R and SQL write that there is no number.
_NO_NUMBER = frozenset(
    ["nan", "NaN", "NAN", "NA", "N/A", "<NA>", "None", "null", "NULL", "inf", "-inf", "Infinity", "-Infinity"]
)
_EXACT = 2**53  # from here on, floats stand for several whole numbers


@dataclass(frozen=True)
class LabelColumn:
    """The labels of one part, as they stand in its rows.

    Attributes:
        part: `train` or `test`, for messages.
        name: of the column.
        rows: with this column.

    """

    part: str
    name: str
    rows: Rows

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of a declared ClassLabel."""
        return self.rows.classes.get(self.name)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Number and value of each row.

        Raises:
            DataError: a label is missing, whatever the task.

        """
        for row, value in enumerate(self.rows.columns[self.name]):
            if _is_missing(value) or (value == -1 and self.classes is not None):
                raise self.error(row, value, "the label is missing; fill it in, or leave the example out")
            yield row, value

    def error(self, row: int, value: Any, why: str) -> DataError:
        """What is wrong with a label, and where it stands."""
        place = self.rows.place(row)
        return DataError(f"data.label: {self.part} example {row} has {shown(value)} in {self.name!r}; {why}{place}")

    def named(self) -> list[str]:
        """The class that each row names.

        Raises:
            DataError: a label is missing, or names no class.

        """
        names, classes, kinds = [], self.classes, set[bool]()
        for row, value in self:
            name = _name(value) if classes is None else _of_class(value, classes)
            if name is None and classes is None:
                raise self.error(row, value, "a string, a whole number or a boolean is allowed")
            if name is None:
                raise self.error(row, value, f"its ClassLabel has the numbers from 0 to {len(classes or ()) - 1}")
            if isinstance(value, float) and value.is_integer() and abs(value) >= _EXACT:
                raise self.error(row, value, "a float of this size stands for several whole numbers; write a string")
            if not isinstance(value, str):
                kinds.add(isinstance(value, bool))
                if len(kinds) > 1:
                    raise self.error(row, value, "booleans and numbers do not meet; write one of them")
            names.append(name)
        return names


@dataclass(frozen=True)
class Classes:
    """The classes of the training data.

    Attributes:
        names: in order.
        whole: every name is a whole number.
        numeric: every name is spelled as a number, so that `nan` is none.
        declared: by a ClassLabel.

    """

    names: tuple[str, ...]
    whole: bool
    numeric: bool
    declared: bool

    @classmethod
    def of(cls, labels: LabelColumn) -> "Classes":
        """The classes of the training part.

        Raises:
            DataError: a label that is missing or names no class, fractions, or a single class.

        """
        named, declared = labels.named(), labels.classes
        names = set(named)
        numbers = names - _NO_NUMBER
        numeric = declared is None and bool(numbers) and all(map(_NUMBER.fullmatch, numbers))
        if numeric:
            _check_numbers(labels, named)
            if any(map(_is_fraction, names)):
                raise DataError(
                    f"data.label: {labels.name!r} holds fractions, which are not classes; use data.task=regression"
                )
        whole = numeric and all(map(_WHOLE.fullmatch, names))
        names = set(map(_whole, names)) if whole else names
        if len(names) < 2:
            raise DataError(
                f"data.label: {labels.name!r} has the single class {shown(names.pop())}; a classifier needs at least two"
            )
        if declared is not None:
            return cls(declared, False, False, True)
        _warn_of_twins(names, labels.name)
        return cls(tuple(sorted(names, key=Decimal if whole else None)), whole, numeric, False)

    def numbers(self, labels: LabelColumn) -> list[int]:
        """The class of each row of a part, as a number.

        Raises:
            DataError: a label that is missing or names no class, or one that the training data does not know.

        """
        known = {name: number for number, name in enumerate(self.names)}
        if self.declared and labels.classes is None and not any(map(_WHOLE.fullmatch, self.names)):
            known = {**{str(number): number for number in range(len(self.names))}, **known}
        named = labels.named()
        if self.numeric:
            _check_numbers(labels, named)
        numbers = []
        for row, name in enumerate(named):
            number = known.get(_whole(name) if self.whole else name)
            if number is None:
                raise DataError(
                    f"data.label: {labels.part} example {row} has label {shown(name)}, which no training example has; known: "
                    f"{listed(self.names)}{nearest(name, self.names)}{labels.rows.place(row)}"
                )
            numbers.append(number)
        return numbers


def regression_labels(labels: LabelColumn) -> list[float]:
    """Labels as numbers: numbers, and strings that are one. Of a ClassLabel: its names where these are numbers, else its numbers.

    Raises:
        DataError: a label that is missing, not finite, or no number.

    """
    numbers, classes = [], labels.classes
    if classes is not None and not all(map(_NUMBER.fullmatch, classes)):
        classes = None
    for row, value in labels:
        number = _number(value if classes is None else _of_class(value, classes))
        if not math.isfinite(number):
            raise labels.error(row, value, "regression needs numbers that are finite")
        numbers.append(number)
    return numbers


def nearest(name: str, known: Sequence[str]) -> str:
    """A question to go behind a message: which known name was probably meant; empty where none is near."""
    alike = [one for one in known if one != name and _plain(one) == _plain(name)]
    near = alike[:1] or difflib.get_close_matches(name, known, 1)
    return f"; did you mean {shown(near[0])}?" if near else ""


def _name(value: Any) -> str | None:
    """None for what is no label."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    return None


def _of_class(value: Any, classes: Sequence[str]) -> str | None:
    if isinstance(value, str):  # another tool has written the names, and left the declaration
        return value if value in classes else None
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def _check_numbers(labels: LabelColumn, named: Sequence[str]) -> None:
    for row, name in enumerate(named):
        if name in _NO_NUMBER:
            why = (
                "all other labels are numbers, so this one is missing; fill it in, leave the example out, or rename it"
            )
            raise labels.error(row, name, why)


def _whole(name: str) -> str:
    """The digits of what is spelled as a whole number; anything else as it is."""
    match = _WHOLE.fullmatch(name)
    return name if match is None else "0" if match[1] == "-0" else match[1]


def _is_fraction(text: str) -> bool:
    """Whether a number is not whole; without a float where a float would round."""
    mantissa, scaled, _ = text.lower().partition("e")
    if not scaled:
        return mantissa.partition(".")[2].strip("0") != ""
    return math.isfinite(float(text)) and not float(text).is_integer()


def _number(value: Any) -> float:
    """The value as a number; NaN if it is none."""
    try:
        if isinstance(value, str):
            return float(value) if _NUMBER.fullmatch(value.strip()) else math.nan
        return float(value) if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.inf


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _warn_of_twins(names: set[str], column: str) -> None:
    """Two names that a reader takes for one are probably one."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        first = seen.setdefault(_plain(name), name)
        if first != name:
            how = "differ by spaces, case or Unicode form alone"
            warnings.warn(
                f"data.label: {shown(first)} and {shown(name)} in {column!r} are two classes, but {how}",
                LorankWarning,
                stacklevel=4,
            )
            return
