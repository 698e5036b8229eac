"""Files of data that hold what no data are: one short message with the file and the line, at once."""

import gzip
import io
import os
import re
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from lorank.errors import DataError
from lorank.starter.columns import task_of_columns
from lorank.starter.first_rows import read_source
from lorank.tasks.data import load_task_data
from lorank.tasks.files import read_rows
from lorank.tasks.section import DataSection

MANY = ", ".join(f'"k{number}": 1' for number in range(50_000))
COLUMNS = ",".join(f"c{number}" for number in range(50_000))
NESTED = "[" * 100_000


def refused(path: Path) -> str:
    """What is said of a file by whatever reads it: as a recipe's data of three tasks, and by `lorank init`."""
    messages, began = [], time.process_time()
    for task, columns in (("classification", {"text": "text", "label": "label"}), ("chat", {}), ("summarization", {})):
        with pytest.raises(DataError) as found:
            load_task_data(DataSection(train=str(path), test=str(path), task=task, **columns))  # type: ignore[arg-type]
        messages.append(str(found.value))
    with pytest.raises(DataError) as found:
        task_of_columns(read_source(str(path), None, None).rows, None, (), "")
    assert time.process_time() - began < 10
    assert all(len(one) < 1_500 and "\x1b" not in one for one in (*messages, str(found.value)))
    return messages[0]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("null", "line 1: an object was expected, with a value for each column, got None"),
        ("[]", "has no examples"),
        ("{}", "train has no column 'text'; it has none"),
        ("7", "line 1: an object was expected"),
        ("[null]", "line 1: an object was expected"),
        (NESTED, "line 1: nested too deeply"),
        (f'{{"text": {NESTED}', "line 1: nested too deeply"),
        ('{"text": "a", "text": "b"}', "line 1: the key 'text' is there twice"),
        (f'{{{MANY}, "k49999": 2}}', "line 1: the key 'k49999' is there twice"),
        (f"{{{MANY}}}", "k19 and 49,980 more"),
        (f'{{"label": {"9" * 10_000}}}', "line 1: a number of more than 4300 digits"),
        ('{"text": "a", "label": NaN}', r"nan in 'label'; the label is missing"),
        (b'{"text": "\xff"}', "line 1 is not UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "it looks like UTF-16"),
        ('{"text": "a"}'.encode("utf-16-le"), "begins with a zero byte, as UTF-16"),
        (b"\0" * 1000, "begins with a zero byte"),
        (b'{"text": "a\0"}', "line 1: no valid JSON"),
        ('{"text": "\\ud800"}', "half of a character"),
        ("", "is empty"),
        ('{"\\u001b[31m\\u202e": 1}', r"it has \\x1b\[31m\\u202e"),
        ('{"text": "a", "label": ["' + "a" * 10**6 + '"]}', "a string, a whole number or a boolean is allowed"),
    ],
    ids=range(21),
)
def test_json(content: str | bytes, said: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(said, refused(path)), refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('text,label\n"' + "a,b\n" * 50_000, "line 2: .*a quote that is not closed"),
        ('text,label\n"' + "a,b\n" * 3_000_000, "line 2: a cell of more than 10,000,000 characters .perhaps a quote"),
        (f"{COLUMNS}\n", "c19 and 49,980 more"),
        (f"text,label,{COLUMNS}\na,b\n", "line 2 has 2 fields where the header has 50002"),
        (f"text,label,{'c,' * 50_000}\n", "names a column twice: c"),
        ("text,label\n".encode("utf-16"), "it looks like UTF-16"),
        ("text,label\n".encode("utf-16-le"), "begins with a zero byte"),
        (b"text,label\na,x\n\xff,y\n", "line 3 is not UTF-8"),
        ("", "is empty"),
        ("text,label\n", "has no examples"),
        ("te\x1b[31mxt,label\n", r"it has te\\x1b\[31mxt, label"),
    ],
    ids=range(11),
)
def test_csv(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(said, refused(path)), refused(path)


def packed(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def test_parquet(tmp_path: Path) -> None:
    whole = packed(pyarrow.table({"text": ["a", "b"] * 100, "label": ["x", "y"] * 100}))
    path = tmp_path / "data.parquet"
    for content in (whole[: len(whole) // 2], whole[10:], b"PAR1" + b"\0" * 100 + b"PAR1", gzip.compress(whole), b"x"):
        path.write_bytes(content)
        assert "cannot be read" in refused(path)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    repeated = pyarrow.array(["a" * 10_000] * 30_000).dictionary_encode()
    path.write_bytes(packed(pyarrow.table({"text": repeated, "label": repeated})))
    assert "unpacks to 300,000,000; save it as several files" in refused(path)
    path.write_bytes(packed(pyarrow.table({"text": repeated[:2_000], "label": ["a", None] * 1_000})))
    rows = read_rows(path, ("text", "label"))
    assert rows.columns["text"] == ["a" * 10_000] * 2_000
    assert rows.columns["label"][:3] == ["a", None, "a"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    os.symlink("/dev/zero", tmp_path / "device.json")
    for name in ("folder.json", "pipe.json", "device.json"):
        assert f"{name}: no plain file" in refused(tmp_path / name)
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(b"{}" * 1000))
    with pytest.raises(DataError, match=r"is of unknown kind '.gz'"):
        read_rows(tmp_path / "rows.json.gz", ())
