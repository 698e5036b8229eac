"""What is checked of files that others made: no link or name leads out of a folder, contents are such as tools write them.

A checksum says that a file is as it was written, not who wrote it. A link to some file of the reader's would be read, copied and
uploaded with the adapter.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lorank.artefact import LARGEST_JSON, read_json
from lorank.errors import AdapterError, in_short, one_line, shown

Record = TypeVar("Record")
# Above any model that there is; sums of them stay far from what arrays of 64 bits hold.
Rank = Annotated[int, Field(ge=0, le=10**7)]
Cost = Annotated[int, Field(ge=1, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=10_000)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Provenance(_Fields):
    """Values that lorank reads again; others are kept as they are."""

    method: Text | None = None
    preset: Text | None = None
    model: Text | None = None
    model_type: Text | None = None
    scores: Text | None = None
    rank_by: Text | None = None
    scope: Text | None = None
    base_parameters: Count | None = None
    max_rank: Rank | None = None
    min_rank: Rank | None = None
    multiple_of: Rank | None = None
    within: Number | None = None
    weighted_units: Number | None = None
    scale: Number | None = None
    choices: dict[str, Any] | None = None
    stability: dict[str, Any] | None = None
    quadrature: dict[str, Any] | None = None
    groups: dict[Name, dict[str, Any]] | None = None
    experts: dict[Name, Cost] | None = None
    versions: dict[str, Text] | None = None


class _Budget(_Fields):
    asked: Text
    parameters: Count
    units: Count | None = None


class _Module(_Fields):
    rank: Rank
    unit_cost: Cost


class PlanFile(_Fields):
    """The content of plan.json."""

    budget: _Budget
    scale: Annotated[float, Field(ge=0, lt=1e30)]
    alpha: Annotated[float, Field(ge=0, lt=1e30)] | None
    rslora: bool = False
    modules: dict[Name, _Module]
    provenance: _Provenance


class ScoresHeader(_Fields):
    """The JSON header of a scores file."""

    unit_costs: dict[Name, Cost]
    max_ranks: dict[Name, Rank] | None = None
    provenance: _Provenance
    fingerprint: Text
    tensors: Text | None = None


def what_is_wrong(kind: type[BaseModel], content: Mapping[str, Any]) -> str | None:
    """The first field that is missing or of another type or size, without its value; None where all are as they should be."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return _first_of(error)
    return None


def record_of(kind: type[Record], content: Any) -> Record:
    """A record of a run or a comparison from what its file holds.

    Args:
        kind: a dataclass; its fields have to be there, in their types, and no others.
        content: of a JSON file.

    Raises:
        ValueError: says what is wrong, without the value.

    """
    if not isinstance(content, dict):
        raise ValueError("it holds no keys and values")
    if unknown := [key for key in content if key not in {field.name for field in fields(cast(Any, kind))}]:
        raise ValueError(f"{in_short(str(unknown[0]))} is none of its keys")
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ValueError(_first_of(error)) from None


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(in_short(str(part), 60) for part in first["loc"])
    return f"{where}: {first['msg']}"


def unreadable(kind: type[BaseModel], content: Mapping[str, Any]) -> str | None:
    """Why a file with this content would be refused when it is read; None where it would not."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        text.encode()
        return what_is_wrong(kind, json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        return f"a value that JSON cannot hold ({one_line(error)})"


_TEXTS = (".json", ".jinja", ".txt", ".jsonl", ".yaml")
# `blobs/ab/abcd...` of a hub cache holds files that several of its repositories share.
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def check_adapter_folder(folder: str | Path) -> None:
    """Refuse a folder with a link that leads out of it, a pipe or a device, or a text that no tool writes that long.

    The snapshots of the hub's cache are folders of links to the blobs beside them; these are allowed.

    Raises:
        AdapterError: names the first such file, and what a link leads to.

    """
    root = Path(os.path.realpath(folder))  # the folder itself may be given by a link
    for where, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            if problem := _problem_of(path):
                raise AdapterError(f"{Path(folder) / path.relative_to(root)} {problem}; take it away")
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            if not (target.is_relative_to(root) or _is_blob(target, root)):
                raise AdapterError(
                    f"{Path(folder) / path.relative_to(root)} is a link to {target}, which is outside of the adapter's folder; "
                    "put the file itself there if it belongs to the adapter, or take the link away"
                )


def _problem_of(path: Path) -> str | None:
    """Why a file of a received folder is not to be opened; None where it may be, or is not there."""
    if not path.exists():
        return None
    if not (path.is_file() or path.is_dir()):
        return "is no plain file"  # a pipe would be waited for, and a device has no end
    if path.suffix in _TEXTS and path.is_file() and (size := path.stat().st_size) > LARGEST_JSON:
        return f"has {size:,} bytes; at most {LARGEST_JSON:,} are read"
    return None


def _is_blob(target: Path, root: Path) -> bool:
    """Whether a file is among the blobs of the cached hub repository that `root` is a snapshot of, or is a part of one."""
    for snapshots in (root, *root.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            shared = repository.parent / "blobs"
            return target.is_relative_to(repository / "blobs") or (
                target.is_relative_to(shared) and bool(_SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix()))
            )
    return False


# Keys of a model's config -> the least and most that the number may be. Building a model of more takes all memory or time.
_SIZES = tuple(
    (re.compile(keys), least, most)
    for keys, least, most in (
        (r"num_labels", 0, 10**6),
        (r"chunk_size_feed_forward", 0, 1),  # a larger one has to divide the length of every batch
        (r"(num|n)_(\w+_)?(layers?|blocks)|(encoder|decoder|hidden)?_?layers|depths?", 0, 1000),
        (r"(\w+_)?(num|n)_(\w+_)?experts", 0, 10**4),
        (r"hidden_size|d_model|n_embd|vocab_size|(num|n)_(\w+_)?heads?|n_head", 1, 10**9),
        (r"intermediate_size|d_ff|n_inner|type_vocab_size|head_dim", 0, 10**9),
        (r"\w*(size|dim|positions|width|channels|features|rank)|n_ctx", -(10**9), 10**9),
    )
)
_KINDS: Mapping[str, tuple[type | None, str]] = {
    **dict.fromkeys(("id2label", "label2id", "auto_map", "quantization_config"), (dict, "a mapping")),
    "architectures": (list, "a list of names"),
    "model_type": (str, "a name"),
}
_DTYPE = re.compile(r"(torch[.])?(auto|float|double|half|b?float(64|32|16)|float(8|4)_\w+|u?int8)")
_EXPERTS = 200_000  # in all layers


def check_model_config(content: Any) -> None:
    """Refuse the content of a model's config.json that no model can be built from, or none that memory could hold.

    Raises:
        ValueError: says which key, what it may be, and, in short, what it is.

    """
    if not isinstance(content, dict):
        raise ValueError(f"its config is {shown(content, 40)}, and not keys and values")
    counts = {"layers": 1, "experts": 1}
    for key, value in _values_in(content):
        kind, what = _KINDS.get(key, (None, ""))
        if kind is not None and value is not None and not isinstance(value, kind):
            raise ValueError(f"{key} in its config is {shown(value, 40)}; allowed: {what}")
        if key == "architectures" and not all(isinstance(name, str) for name in value or ()):
            raise ValueError(f"{key} in its config is {shown(value, 40)}; allowed: {what}")
        if key in ("dtype", "torch_dtype") and isinstance(value, str | int | list) and not _is_dtype(value):
            raise ValueError(
                f"{key} in its config is {shown(value, 40)}; allowed: float32, bfloat16, float16 and the like"
            )
        for number in value if isinstance(value, list) else (value,):
            if not isinstance(number, int) or isinstance(number, bool):
                continue
            for pattern, least, most in _SIZES:
                if pattern.fullmatch(key):
                    if not least <= number <= most:
                        raise ValueError(f"{key} in its config is {shown(number)}; allowed: {least:,} to {most:,}")
                    for name in counts:
                        counts[name] = max(counts[name], number if name in key else 1)
                    break
    if counts["layers"] * counts["experts"] > _EXPERTS:
        raise ValueError(
            f"its config has {counts['experts']:,} experts in each of {counts['layers']:,} layers; allowed: {_EXPERTS:,} in all"
        )


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and _DTYPE.fullmatch(value) is not None


def _values_in(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a mapping, and of those inside of it; not of names of labels, whose keys are anybody's."""
    waiting: list[Any] = [content]
    while waiting:
        for key, value in waiting.pop().items():
            yield str(key), value
            if isinstance(value, dict) and key not in ("id2label", "label2id", "auto_map"):
                waiting.append(value)


def check_model_folder(folder: Path) -> None:
    """Refuse a model's folder with a pipe, a device or an endless text, or with a damaged index of weights.

    Raises:
        ValueError: says what is wrong.

    """
    for path in sorted(folder.iterdir()):
        if problem := _problem_of(path):
            raise ValueError(f"{path.name} {problem}")
    for path in sorted(folder.glob("*.safetensors.index.json")):
        try:
            placed = read_json(path)["weight_map"]
            names = sorted(set(placed.values()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path.name} is damaged ({type(error).__name__}: {one_line(error, 100)})") from None
        for name in names:
            inside = isinstance(name, str) and Path(os.path.normpath(folder / name)).is_relative_to(
                os.path.normpath(folder)
            )
            if not inside:
                raise ValueError(f"{path.name} names the file {shown(name)}, which is not in the folder")
            if not (folder / name).is_file():
                raise ValueError(f"{path.name} names the file {shown(name)}, which is missing")
