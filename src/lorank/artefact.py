"""How lorank writes files: to a temporary name, then renamed, so that a killed process never leaves half a file."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorank.errors import OutputError


def versions() -> dict[str, str]:
    """Versions of lorank and of what its results depend on, for provenance."""
    names = ("lorank", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
    return {name: version(name) for name in names}


def check_file(path: Path) -> None:
    """Refuse to write a file where a folder is.

    Raises:
        OutputError: `path` is a folder.

    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file to write")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` in the folder of `path`, then rename: readers see the old file or the new one.

    Raises:
        OutputError: `path` is a folder, or in a place that cannot be written to.

    """
    check_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; give another output") from None
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinity are refused: JSON has no such numbers."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        OutputError: a file is in the way, or the disk refuses.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; give another output") from None


def checksum(content: Any) -> str:
    """SHA-256 of the canonical JSON of `content`: equal content gives an equal sum, whatever the order of keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something already, or that cannot be made.

    Raises:
        OutputError: `folder` is a file, or not empty, or stands below one.

    """
    below = next((parent for parent in folder.absolute().parents if parent.exists()), None)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; give the name of a new folder as output")
    if below is not None and not (below.is_dir() and os.access(below, os.W_OK)):
        raise OutputError(
            f"{folder} cannot be made: {below} is {'a file' if below.is_file() else 'not to be written to'}"
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; when all went well it gets its name, else it goes: never half a folder.

    Raises:
        OutputError: as `check_new_folder`, or the disk refuses.

    """
    check_new_folder(folder)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror}; give another output") from None
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors makes files private
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
