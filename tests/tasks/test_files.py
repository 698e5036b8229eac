"""Files of rows: the values that stand in them, or an error that names the line."""

import csv
import datetime
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lorank.errors import DataError
from lorank.tasks.data import load_task_data
from lorank.tasks.files import Rows, read_rows
from lorank.tasks.section import DataSection


def read(path: Path, content: str | bytes | pyarrow.Table, *wanted: str) -> Rows:
    if isinstance(content, pyarrow.Table):
        parquet.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(path, wanted)


@pytest.mark.parametrize("content", ['{"a": "x"}\n{"a": 1}', '[{"a": "x"},\n{"a": 1}]', '{\n"a":"x"}{"a":\n1}'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_is_lines_or_a_list_with_any_line_ends(tmp_path: Path, content: str, end: str, mark: str) -> None:
    rows = read(tmp_path / "a.json", mark + f"\n{content}\n\n".replace("\n", end), "a")
    assert rows.columns["a"] == ["x", 1]
    assert len(rows.lines) == 2
    assert rows.lines[0] == 2


def test_json_values_stay_what_they_are(tmp_path: Path) -> None:
    values: list[Any] = [
        "2024-05-01",
        "2024-05-01T10:00:00Z",
        "007",
        10**30,
        -1,
        1.5,
        True,
        None,
        ["x"],
        {"b": [1]},
        "\u2028",
    ]
    lines = "".join(json.dumps({"a": value, "b": 0}, ensure_ascii=False) + "\n" for value in values) + '{"b": 1}\n'
    rows = read(tmp_path / "a.jsonl", lines, "a", "c")
    assert rows.columns == {"a": [*values, None]}
    assert [type(value) for value in rows.columns["a"]] == [*map(type, values), type(None)]
    assert rows.names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"null", "line 1: an object was expected"),
        (b'{"a": 1}\n[1]', r"line 2: an object was expected, .* got \[1\]"),
        (b'[{"a": 1}, \n 7]', "line 2: an object was expected"),
        (b'{"a": 1}\n{"a": 1', r"line 2: no valid JSON \(Expecting ',' delimiter, line 2, column 8\)"),
        (b'\n{"a": 1\n{"a": 1}', r"line 2: no valid JSON \(Expecting ',' delimiter, line 3, column 1\)"),
        (b'[{"a": 1}\n', "line 2: no valid JSON .the list has no end"),
        (b'[{"a": 1},]', "no valid JSON"),
        (b'[{"a": 1}\n{"a": 1}]', "line 2: no valid JSON .a comma"),
        (b'[{"a": 1}]\n[]', "line 1: no valid JSON .more stands behind"),
        (b'{"a": 1}\n{"a": 1, "a": 2}', "line 2: the key 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 2}}', "line 1: the key 'b' is there twice"),
        (b'{"a": "\\ud83d"}', "line 1: half of a character"),
        (b'{"a": 1}\r\n{"a": "\xff"}', "line 2 is not UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "line 1: .*4300 digits"),
        ('{"a": 1}'.encode("utf-16"), "line 1 is not UTF-8 .*looks like UTF-16"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", None),
        (b"[]", None),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_damaged_json_is_named_with_its_line(tmp_path: Path, content: bytes, message: str | None, suffix: str) -> None:
    if message is None:
        assert len(read(tmp_path / f"a{suffix}", content, "a")) == 0
        return
    with pytest.raises(DataError, match=message):
        read(tmp_path / f"a{suffix}", content, "a")


def test_a_pair_of_surrogates_is_one_character(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", r'{"a": "\ud83d\ude00"}', "a").columns["a"] == ["\U0001f600"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_cells_are_strings_with_any_line_ends(tmp_path: Path, end: str) -> None:
    for suffix, quoted in ((".csv", '"say ""hi"",\n now"'), (".tsv", '"say ""hi"", now"')):
        delimiter = "," if suffix == ".csv" else "\t"
        text = "\n".join(["", f"b{delimiter}a", "", f"007{delimiter}{quoted}", "", f"{delimiter} NA", ""])
        rows = read(tmp_path / f"a{suffix}", text.replace("\n", end), "a", "b")
        first = f'say "hi",{end} now' if suffix == ".csv" else quoted
        assert rows.columns == {"a": [first, " NA"], "b": ["007", ""]}
        assert rows.names == ("b", "a")
        assert list(rows.lines) == ([4, 7] if suffix == ".csv" else [4, 6])


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".csv", b"a,b\nx,y\nx\n", "line 3 has 1 fields where the header has 2"),
        (".csv", b'a,b\nx,y\n\n"x,y\n1,2\n', "line 4: unexpected end of data"),
        (".csv", b'a,b\n"x" z,y\n', "line 2: "),
        (".csv", b"a,b\nx,\xff\n", "line 2 is not UTF-8"),
        (".tsv", b"a\tb\rx\ty\rx\t\xc3(\r", "line 3 is not UTF-8"),
        (".tsv", b"a\ta\n", "names a column twice"),
        (".csv", b"\n\n", "is empty"),
        (".csv", b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / f"a{suffix}", content, "a")


def test_a_mark_at_the_beginning_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "\ufeffa,b\nx,y\n", "a").columns == {"a": ["x"]}


def test_parquet_values_stay_what_they_are(tmp_path: Path) -> None:
    columns = {
        "decimal": pyarrow.array([Decimal("1.50"), None]),
        "date": pyarrow.array([datetime.date(2024, 5, 1), None]),
        "time": pyarrow.array([datetime.datetime(2024, 5, 1, 10), None]),
        "dictionary": pyarrow.array(["x", None]).dictionary_encode(),
        "large": pyarrow.array([2**64 - 1, None], type=pyarrow.uint64()),
        "boolean": pyarrow.array([True, None]),
        "null": pyarrow.nulls(2),
        "nested": pyarrow.array([{"label": ["A"], "text": ["x"]}, None]),
        "a.b": pyarrow.array(["dotted", None]),
        "*": pyarrow.array([float("inf"), None]),
    }
    rows = read(tmp_path / "a.parquet", pyarrow.table(columns), *columns, "missing")
    assert rows.columns == {name: values.to_pylist() for name, values in columns.items()}
    assert rows.columns["large"] == [2**64 - 1, None]
    assert rows.names == tuple(columns)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["a", "a"])
    with pytest.raises(DataError, match="names a column twice"):
        read(tmp_path / "a.parquet", twice, "a")
    broken = pyarrow.array([b"\xff"]).view(pyarrow.string())
    with pytest.raises(DataError, match=r"column 'a' has a string that is not UTF-8"):
        read(tmp_path / "a.parquet", pyarrow.table({"a": broken}), "a")
    features = {"info": {"features": {"a": {"_type": "ClassLabel", "names": "yes"}}}}
    noted = pyarrow.table({"a": [0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    with pytest.raises(DataError, match="note of features is damaged"):
        read(tmp_path / "a.parquet", noted, "a")


def test_a_path_is_that_file_and_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "label=1"
    folder.mkdir()
    for name in ("a*", "a1", "a[1]", "a?", "?"):
        for suffix, rest in ((".jsonl", '{"a": "%s"}'), (".csv", "a\n%s\n")):
            assert read(folder / f"{name}{suffix}", rest % name, "a").columns["a"] == [name]
        found = read(folder / f"{name}.parquet", pyarrow.table({"a": [name]}), "a", "label")
        assert (found.columns, found.names) == ({"a": [name]}, ("a",))
    for path in (tmp_path / "*.jsonl", tmp_path / "a" / "a.jsonl", folder, Path("https://example.com/a.jsonl")):
        with pytest.raises(DataError, match=r"no (such|plain) file"):
            read_rows(path, ["a"])
    with pytest.raises(DataError, match="too long"):
        read_rows(tmp_path / ("a" * 300 + ".csv"), ["a"])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_other_content_under_the_same_path_and_time_is_read(tmp_path: Path, suffix: str) -> None:
    path, seen = tmp_path / f"a{suffix}", []
    for word in ("old", "new"):
        frame = pandas.DataFrame({"text": [f"{word} {i}" for i in range(4)], "label": [0, 1] * 2})
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=suffix == ".jsonl")
        os.utime(path, (10**9, 10**9))
        data = load_task_data(DataSection(train=str(path), test=str(path)))
        seen.append((data.train["text_1"][0], data.hashes["train"]))
    assert [text for text, _ in seen] == ["old 0", "new 0"]
    assert seen[0][1] != seen[1][1]


def test_a_class_label_in_parquet_keeps_its_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"a": datasets.ClassLabel(names=["no", "yes"]), "b": datasets.List(datasets.Value("int64"))}
    )
    datasets.Dataset.from_dict({"a": [1, 0, -1], "b": [[1], [], [2]]}, features=features).to_parquet(
        str(tmp_path / "a.parquet")
    )
    rows = read_rows(tmp_path / "a.parquet", ["a", "b"])
    assert (rows.columns["a"], rows.classes) == ([1, 0, -1], {"a": ("no", "yes")})
    assert [row["a"] for row in rows] == ["yes", "no", None]


CONTENT = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            ['{"a":', "1", '"x"', "}", "[", "]", ",", "\n", "\r", '"', "\t", "NaN", "\ufeff", "null", "\\ud800"]
        )
    ).map(lambda pieces: "".join(pieces).encode()),
)


@settings(deadline=None, max_examples=80)
@given(CONTENT, st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]))
def test_any_bytes_are_rows_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        rows = read_rows(path, ["a"])
    except DataError:
        return
    assert all(len(values) == len(rows) for values in rows.columns.values())


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
CELL = TEXT.filter(lambda text: not set(text) & set("\t\r\n"))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_strings_come_back_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], plain: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    objects, table = [dict(zip("ab", row, strict=True)) for row in rows], io.StringIO(newline="")
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    files: dict[str, Any] = {
        ".jsonl": "\n".join(map(json.dumps, objects)),
        ".json": json.dumps(objects, ensure_ascii=False, indent=1),
        ".csv": table.getvalue(),
        ".parquet": pyarrow.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}),
    }
    for suffix, content in files.items():
        found = read(folder / f"same{suffix}", content, "a", "b")
        assert list(zip(found.columns["a"], found.columns["b"], strict=True)) == rows, suffix
    found = read(folder / "same.tsv", "\n".join(map("\t".join, [("a", "b"), *plain])), "a", "b")
    assert list(zip(found.columns["a"], found.columns["b"], strict=True)) == plain
