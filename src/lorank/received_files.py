"""What is checked of files that others made: no link leads out of an adapter's folder, headers hold what lorank writes.

A checksum says that a file is as it was written, not who wrote it. A link to some file of the reader's would be read, copied and
uploaded with the adapter.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorank.errors import AdapterError

# Above any model that there is; sums of them stay far from what arrays of 64 bits hold.
Rank = Annotated[int, Field(ge=0, le=10**7)]
Cost = Annotated[int, Field(ge=1, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**15)]
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
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        return f"{where}: {first['msg']}"
    return None


# `blobs/ab/abcd...` of a hub cache holds files that several of its repositories share.
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def check_links(folder: str | Path) -> None:
    """Refuse a folder with a link, to a file or to a folder, that leads out of it.

    The snapshots of the hub's cache are folders of links to the blobs beside them; these are allowed.

    Raises:
        AdapterError: names the first such link and what it leads to.

    """
    root = Path(os.path.realpath(folder))  # the folder itself may be given by a link
    for where, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            if not (target.is_relative_to(root) or _is_blob(target, root)):
                raise AdapterError(
                    f"{Path(folder) / path.relative_to(root)} is a link to {target}, which is outside of the adapter's folder; "
                    "put the file itself there if it belongs to the adapter, or take the link away"
                )


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
