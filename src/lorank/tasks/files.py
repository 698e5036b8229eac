"""Files of rows, read as they are: no type is guessed, no cache is asked, and a path is the name of one file."""

import csv
import io
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet

from lorank.errors import DataError, listed, one_line, shown

_LINE_END = re.compile(rb"\r\n|\r|\n")
_LONGEST_CELL = 10_000_000  # characters; of a csv file whose quote is never closed, all of it would be one cell
# Of a parquet file: bytes that any may unpack to, and how many times its size.
_ROOM, _UNPACKED = 256 * 2**20, 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Rows:
    """Rows of one part of the data, as Python values.

    Attributes:
        names: of all columns that there are.
        columns: name -> one value for each row, of the columns that were asked for and are there.
        lines: the line of the file in which each row begins; empty where rows have no lines (parquet, hub).
        file: what `lines` belong to.
        classes: column -> names of its classes, where the values are declared to be numbers of classes (ClassLabel).

    """

    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    count: int
    lines: Sequence[int] = ()
    file: str = ""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def place(self, row: int) -> str:
        """Where a row stands in its file, to go behind a message; empty where rows have no lines."""
        return f" ({self.file}, line {self.lines[row]})" if self.lines else ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows as column -> value; the number of a class as its name, or None where it has none."""
        names = {column: dict(enumerate(classes)) for column, classes in self.classes.items()}
        columns = [
            [value if isinstance(value, str) else names[column].get(value) for value in values]
            if column in names
            else values
            for column, values in self.columns.items()
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(self.columns, values, strict=True))


def read_rows(path: Path, wanted: Iterable[str]) -> Rows:
    """The rows of a file, with the columns that are wanted, where it has them.

    - csv, tsv: every cell is a string; in tsv, quotes are part of it.
    - json, jsonl: objects behind each other, or one list of objects. Strings stay strings, whole numbers have any size, true and
      false are booleans. A key that a row does not have is None there.
    - parquet: the values of its columns, and the class names of columns that `datasets` saved as ClassLabel.

    Raises:
        DataError: the file cannot be read; names the line where there is one.

    """
    wanted = tuple(dict.fromkeys(wanted))
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'no plain' if path.exists() else 'no such'} file (looked in {Path.cwd()})")
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path} is of unknown kind {path.suffix!r}; allowed: {', '.join(_READERS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; it needs examples")
        return reader(path, wanted)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {one_line(error)})") from error


def _bytes(path: Path) -> bytes:
    """The bytes of a UTF-8 file."""
    with path.open("rb") as file:
        if 0 in (first := file.read(2)):  # before all of it is read
            raise DataError(f"{path} begins with a zero byte, as UTF-16 or no text at all; save the file as UTF-8")
        content = first + file.read()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = len(_LINE_END.findall(content[: error.start])) + 1
        wide = "; it looks like UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path}, line {line} is not UTF-8 ({error.reason}){wide}; save the file as UTF-8") from None
    return content


def _table_reader(delimiter: str, *, quotes: bool) -> Callable[[Path, tuple[str, ...]], Rows]:
    def read(path: Path, wanted: tuple[str, ...]) -> Rows:
        rows = _cells(path, delimiter, quotes=quotes)
        _, header = next(rows, (0, None))
        if header is None:
            raise DataError(f"{path} is empty; it needs a header and examples")
        _check_names(path, header)
        positions = {name: position for position, name in enumerate(header)}
        lines, kept = array("q"), {name: list[Any]() for name in wanted if name in positions}
        index = [(values, positions[name]) for name, values in kept.items()]
        for line, row in rows:
            if len(row) != len(header):
                raise DataError(f"{path}, line {line} has {len(row)} fields where the header has {len(header)}")
            lines.append(line)
            for values, position in index:
                values.append(row[position])
        return Rows(tuple(header), kept, len(lines), lines, path.name)

    return read


def _cells(path: Path, delimiter: str, *, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The line in which each row begins, and its cells. An empty line is no row."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(
        io.TextIOWrapper(io.BytesIO(_bytes(path)), encoding="utf-8-sig", newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        why = one_line(error)
        if "field limit" in why:
            why = f"a cell of more than {_LONGEST_CELL:,} characters"
        if reader.line_num > line or "unexpected end" in why:
            why += " (perhaps a quote that is not closed)"
        raise DataError(f"{path}, line {line}: {why}") from None


def _read_json(path: Path, wanted: tuple[str, ...]) -> Rows:
    # A line's end inside of a JSON string is not allowed in any case: nothing is changed but the counting of lines.
    content = _bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    names: dict[str, None] = {}
    lines, kept = array("q"), {name: list[Any]() for name in wanted}
    for line, row in _json_values(path, content):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {line}: an object was expected, with a value for each column, got {shown(row, 40)}"
            )
        names.update(dict.fromkeys(row))
        lines.append(line)
        for name, values in kept.items():
            values.append(row.get(name))
    present = {name: values for name, values in kept.items() if name in names}
    return Rows(tuple(names), present, len(lines), lines, path.name)


def _json_values(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """Values that stand behind each other, or those of one list, each with the line in which it begins."""
    decoder, blank = json.JSONDecoder(object_pairs_hook=_object), re.compile("[ \t\n]*")

    def skipped(start: int) -> int:
        match = blank.match(content, start)
        return match.end() if match else start

    position = skipped(0)
    listed = content.startswith("[", position)
    line, counted, first = 1, 0, True
    if listed:
        position = skipped(position + 1)
    while position < len(content) and not (listed and content.startswith("]", position)):
        line, counted = line + content.count("\n", counted, position), position
        if listed and not first:
            if not content.startswith(",", position):
                raise DataError(f"{path}, line {line}: no valid JSON (a comma or the end of the list was expected)")
            position = skipped(position + 1)
            line, counted = line + content.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(content, position)
            if _SURROGATE.search(content, position, end):
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {line}: no valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
            ) from None
        except UnicodeEncodeError:
            raise DataError(f"{path}, line {line}: half of a character (a lone surrogate such as \\ud83d)") from None
        except RecursionError:
            raise DataError(f"{path}, line {line}: nested too deeply to be read") from None
        except ValueError as error:  # a key given twice; or Python reads no number of thousands of digits
            digits = (
                "a number of more than 4300 digits; write it as a string" if "digits" in str(error) else one_line(error)
            )
            raise DataError(f"{path}, line {line}: {digits}") from None
        yield line, value
        position, first = skipped(end), False
    if listed and (position == len(content) or skipped(position + 1) < len(content)):
        line += content.count("\n", counted, position)
        wrong = "the list has no end" if position == len(content) else "more stands behind the end of the list"
        raise DataError(f"{path}, line {line}: no valid JSON ({wrong})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return content


def _read_parquet(path: Path, wanted: tuple[str, ...]) -> Rows:
    try:
        # From a handle: a path is looked at for values of columns (label=1/...) and for file systems.
        with pyarrow.OSFile(os.fspath(path)) as source, parquet.ParquetFile(source) as file:
            schema, names = file.schema_arrow, file.schema_arrow.names
            _check_names(path, names)
            there = set(names)
            present = [name for name in wanted if name in there]
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            _check_unpacked(path, sum(group.total_byte_size for group in groups))
            # Each different string once: a file of some kilobytes may hold one a million times.
            strings = [name for name in present if pyarrow.types.is_string(schema.field(name).type)]
            table = parquet.ParquetFile(source, read_dictionary=strings).read(columns=present)
            columns = {name: _python_values(path, name, table.column(name)) for name in present}
            return Rows(tuple(names), columns, file.metadata.num_rows, classes=_declared(path, schema.metadata or {}))
    except (pyarrow.ArrowException, ValueError, OverflowError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {one_line(error)})") from error


def _check_unpacked(path: Path, size: int) -> None:
    """Refuse a small file that would take all memory."""
    if size > max(_ROOM, _UNPACKED * path.stat().st_size):
        raise DataError(f"{path} has {path.stat().st_size:,} bytes and unpacks to {size:,}; save it as several files")


def _python_values(path: Path, name: str, column: Any) -> list[Any]:
    try:
        if not pyarrow.types.is_dictionary(column.type):
            return list(column.to_pylist())
        _check_unpacked(path, sum(_length(chunk) for chunk in column.chunks))
        values = list[Any]()
        for chunk in column.chunks:
            known = chunk.dictionary.to_pylist()
            values += [None if number is None else known[number] for number in chunk.indices.to_pylist()]
        return values
    except UnicodeDecodeError:
        raise DataError(f"{path}: column {shown(name)} has a string that is not UTF-8") from None


def _length(chunk: Any) -> int:
    """Bytes of the strings of a dictionary array, each as often as it is there."""
    lengths = compute.fill_null(compute.binary_length(chunk.dictionary), 0).cast("int64")
    return compute.sum(compute.take(lengths, chunk.indices)).as_py() or 0


def _declared(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of the classes of each ClassLabel, as `datasets` writes them beside the columns."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        declared = {
            name: kind["names"]
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
        if not all(isinstance(names, list) and len(set(map(str, names))) == len(names) for names in declared.values()):
            raise ValueError("names of classes are a list, each name once")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: its note of features is damaged ({type(error).__name__}: {one_line(error)})"
        ) from None
    return {name: tuple(map(str, names)) for name, names in declared.items()}


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise DataError(
            f"{path} names a column twice: {listed(dict.fromkeys(name for name, count in Counter(names).items() if count > 1))}"
        )


_READERS: Mapping[str, Callable[[Path, tuple[str, ...]], Rows]] = {
    ".csv": _table_reader(",", quotes=True),
    ".tsv": _table_reader("\t", quotes=False),
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
