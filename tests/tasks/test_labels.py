"""The one rule for labels: which class a value stands for, in which order, and when there is none."""

import csv
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lorank.errors import DataError, LorankWarning
from lorank.tasks.files import Rows, read_rows
from lorank.tasks.labels import Classes, LabelColumn, regression_labels

NAN = float("nan")


def column(
    values: list[Any], part: str = "train", names: tuple[str, ...] | None = None, lined: bool = False
) -> LabelColumn:
    lines = range(2, 2 + len(values)) if lined else ()
    classes = {} if names is None else {"y": names}
    return LabelColumn(part, "y", Rows(("y",), {"y": values}, len(values), lines, "a.csv", classes))


def met(train: LabelColumn, test: LabelColumn) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes, and the numbers of the test part."""
    classes = Classes.of(train)
    return classes.names, classes.numbers(test)


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["007", "07", "7", "8"], ("007", "07", "7", "8"), [0, 1, 2, 3]),
        (["1E2", "100", "10E1", "2"], ("100", "10E1", "1E2", "2"), [2, 0, 1, 3]),
        (["1_2", "12", "3"], ("12", "1_2", "3"), [1, 0, 2]),
        (["+1", "1", "٣"], ("+1", "1", "٣"), [0, 1, 2]),
        (["1234567890123456789", "1234567890123456790"], ("1234567890123456789", "1234567890123456790"), [0, 1]),
        ([2**70 + 1, 2**70, -(2**70)], (str(-(2**70)), str(2**70), str(2**70 + 1)), [2, 1, 0]),
        (["9" * 5000, "1"], ("1", "9" * 5000), [1, 0]),
        (["0", "1", "10", "2", "-1"], ("-1", "0", "1", "2", "10"), [1, 2, 4, 3, 0]),
        ([1, 1.0, "1", "1.0", Decimal("1.00"), 0, "-0.0"], ("0", "1"), [1, 1, 1, 1, 1, 0, 0]),
        (["1", "1.0", "1a"], ("1", "1.0", "1a"), [0, 1, 2]),  # not all are numbers: strings stay strings
        (["9", "10", "x"], ("10", "9", "x"), [1, 0, 2]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([True, "False"], ("False", "True"), [1, 0]),
        (["2024-01-01", "2023-01-01"], ("2023-01-01", "2024-01-01"), [1, 0]),
        (["None", "some"], ("None", "some"), [0, 1]),  # a name among names
    ],
)
def test_a_string_is_itself_and_a_whole_number_its_digits(
    values: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    assert met(column(values), column(values, "test")) == (names, numbers)


@pytest.mark.parametrize("missing", [None, NAN, "", " \t", Decimal("NaN")])
@pytest.mark.parametrize("others", [["a", "b"], ["0", "1"], [0, 1], [0.0, 1.0]])
def test_a_missing_label_is_named_with_its_row_and_line(missing: Any, others: list[Any]) -> None:
    message = r"train example 2 has .* in 'y'; the label is missing; .*\(a.csv, line 4\)$"
    with pytest.raises(DataError, match=message):
        Classes.of(column([*others, missing], lined=True))
    with pytest.raises(DataError, match=r"test example 1 has .* the label is missing"):
        met(column(others), column([others[0], missing], "test"))
    with pytest.raises(DataError, match=r"train example 1 has .* the label is missing"):
        regression_labels(column([0.5, missing]))


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "None", "NULL", "null", "inf", "-Infinity"])
def test_a_word_for_no_number_is_missing_among_numbers_alone(word: str) -> None:
    for others in (["0", "1"], ["1", "1.5"], [0, 1]):
        with pytest.raises(DataError, match=f"train example 2 has '{word}' .* this one is missing"):
            Classes.of(column([*others, word]))
    with pytest.raises(DataError, match=f"test example 0 has '{word}' .* this one is missing"):
        met(column(["0", "1"]), column([word], "test"))
    with pytest.raises(DataError, match="regression needs numbers"):
        regression_labels(column(["0", word]))
    assert met(column(["few", word]), column([word], "test"))[0] == tuple(sorted(["few", word]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.5], "fractions"),
        (["0.5", "1"], "fractions"),
        (["1.5", "1e-05"], "fractions"),
        (["12345678901234567890.5", "1"], "fractions"),
        ([Decimal("0.5"), 1], "fractions"),
        ([1, 2.0**53], "several whole numbers; write a string"),
        ([1.0, float("inf")], "example 1 has inf .* a string, a whole number or a boolean"),
        ([["a"], "b"], r"example 0 has \['a'\]"),
        ([True, 1], "example 1 has 1 .* booleans and numbers"),
        (["1", "1.0", 1], "single class '1'"),
    ],
)
def test_what_names_no_class_is_refused(values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classes.of(column(values))


def test_an_unknown_class_of_the_test_part_is_named_with_what_is_near() -> None:
    with pytest.raises(
        DataError, match=r"test example 1 has label ' good', .* known: bad, good; did you mean 'good'\?"
    ):
        met(column(["good", "bad"]), column(["bad", " good"], "test"))


@pytest.mark.parametrize("pair", [("good", "good "), ("1", " 1"), ("Good", "good"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_look_the_same_are_said(pair: tuple[str, str]) -> None:
    with pytest.warns(LorankWarning, match="are two classes, but differ by spaces, case or Unicode form alone"):
        assert len(Classes.of(column([*pair, "x"])).names) == 3


def test_a_class_label_meets_names_and_numbers() -> None:
    moods = column([2, 0, 2], names=("no", "maybe", "yes"))
    for other in (["maybe", "yes"], [1, 2], ["1", "2"], [1.0, 2.0], ["maybe", 2]):
        assert met(moods, column(other, "test")) == (("no", "maybe", "yes"), [1, 2])
    assert met(moods, column([0, 1], "test", names=("yes", "maybe")))[1] == [2, 1]
    assert met(column(["yes", "no"]), column([0, 1], "test", names=("no", "yes"))) == (("no", "yes"), [0, 1])
    stars = column([0, 1], names=("1", "2"))  # its names are numbers: a number is a name, never a position
    assert met(stars, column([1, "2"], "test"))[1] == [0, 1]
    with pytest.raises(DataError, match="test example 0 has label '0'"):
        met(stars, column([0], "test"))
    with pytest.raises(DataError, match=r"train example 1 has 3 .* numbers from 0 to 1"):
        Classes.of(column([0, 3], names=("no", "yes")))
    with pytest.raises(DataError, match="single class 'no'"):
        Classes.of(column([0, 0], names=("no", "yes")))


@pytest.mark.parametrize("no_label", [-1, None])
def test_no_label_of_a_class_label_is_missing(no_label: Any) -> None:
    hidden = column([no_label], "test", names=("no", "yes"))
    with pytest.raises(DataError, match=f"test example 0 has {no_label} .* the label is missing"):
        met(column([0, 1], names=("no", "yes")), hidden)
    with pytest.raises(DataError, match="the label is missing"):
        regression_labels(hidden)


def test_regression_takes_numbers_and_strings_that_are_numbers() -> None:
    values = ["1.5", " -2 ", "1e-3", 3, 0.25, Decimal("0.5"), 10**30]
    assert regression_labels(column(values)) == [1.5, -2.0, 1e-3, 3.0, 0.25, 0.5, 1e30]
    assert regression_labels(column([0, 1], names=("1", "2.5"))) == [1.0, 2.5]
    assert regression_labels(column([0, 1], names=("one star", "two stars"))) == [0.0, 1.0]
    for value in ("1_2", "1,5", "٣", True, [1], "1e400", 10**400, float("-inf"), "five"):
        with pytest.raises(DataError, match=r"train example 1 has .*; regression needs numbers .*line 3"):
            regression_labels(column([0, value], lined=True))


LABEL = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["007", "7", "7.0", "1E2", "1_2", "nan", "None", "0.5", "true", "a", "b", "2023-01-01"]),
    st.text("ab01.", min_size=1, max_size=3),
)


@pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
@settings(deadline=None, max_examples=40)
@given(st.lists(LABEL, min_size=2, max_size=5))
def test_the_same_rows_are_the_same_classes_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str]
) -> None:
    folder, rows = tmp_path_factory.getbasetemp(), [(f"text {i}", label) for i, label in enumerate(labels)]
    objects, table = [{"text": text, "label": label} for text, label in rows], io.StringIO(newline="")
    csv.writer(table).writerows([("text", "label"), *rows])
    contents = {
        ".csv": table.getvalue(),
        ".tsv": "\n".join(map("\t".join, [("text", "label"), *rows])),
        ".json": json.dumps(objects),
        ".jsonl": "\n".join(map(json.dumps, objects)),
    }
    found = []
    for suffix in (*contents, ".parquet"):
        path = folder / f"labels{suffix}"
        if suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(objects), path)
        else:
            path.write_text(contents[suffix], encoding="utf-8", newline="")
        found.append(outcome(path))
    assert all(one == found[0] for one in found)
    if isinstance(found[0], tuple):
        names, numbers, texts = found[0]
        digits = [label.removesuffix(".0") for label in labels]
        whole = all(re.fullmatch("-?[0-9]+", one) and str(int(one)) == one for one in digits)
        assert [names[number] for number in numbers] == (digits if whole else labels)
        assert texts == [text for text, _ in rows]


def outcome(path: Path) -> Any:
    rows = read_rows(path, ["text", "label"])
    labels = LabelColumn("train", "label", rows)
    try:
        classes = Classes.of(labels)
    except DataError as error:
        return str(error).split(" (")[0]  # parquet has no lines
    return classes.names, classes.numbers(labels), rows.columns["text"]
