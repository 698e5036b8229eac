"""Files as a stranger, or a broken disk, would leave them: mutations that Hypothesis draws, of contents and of bytes."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.just([[1]]), st.just({"a": {"b": None}}), st.just("x" * 20_000), st.just("\x1b[31m\u202e\n# x"), st.just([None, 1, "a"]),
)  # fmt: skip
_PIECES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b'"',
    b"\n",
    b"{",
    b"[" * 2000,
    b"9" * 5000,
    b"NaN",
    b"\\ud800",
    b"null",
    b",",
    b"\x1b[31m",
]


@dataclass
class World:
    """A folder for the files of one mutation, and folders of a tiny model and an adapter of it."""

    folder: Path
    model: Path
    adapter: Path


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of nested mappings and every place of lists in them."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else None
    if inner is None:
        return [at]
    return [place for key, value in inner for place in ((*at, key), *places(value, (*at, key)))]


def changed(content: Any, data: st.DataObject) -> Any:
    """With one to three of its fields gone, of another type, or under another name."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        found = [place for place in places(content) if place]
        if not found:
            break
        *path, last = data.draw(st.sampled_from(found))
        parent = content
        for key in path:
            parent = parent[key]
        kind = data.draw(st.sampled_from(["gone", "strange", "renamed"]))
        if kind == "strange":
            parent[last] = copy.deepcopy(data.draw(STRANGE))
        else:
            value = parent.pop(last)
            if kind == "renamed" and isinstance(parent, dict):
                parent[data.draw(st.text(max_size=5))] = value
    return content


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """With one to three of its pieces cut out, overwritten, doubled or put in."""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), start + data.draw(st.sampled_from([0, 1, 1, 4, 30, 10**9])))
        piece = data.draw(st.one_of(st.sampled_from(_PIECES), st.binary(max_size=8), st.just(content[start:end] * 2)))
        content = content[:start] + piece + content[end:]
    return content


def either(path: Path, content: Any, data: st.DataObject, dump: Callable[[Any], str] = json.dumps) -> None:
    """Write content that was changed, or its bytes that were damaged."""
    if data.draw(st.booleans()):
        path.write_text(dump(changed(content, data)), "utf-8", "surrogatepass")
    else:
        path.write_bytes(damaged(dump(content).encode(), data))
