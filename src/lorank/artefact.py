"""How lorank writes files: onto the disk by a temporary name, then renamed. No kill and no power loss leaves half a file."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from lorank.errors import OutputError, one_line

LARGEST_JSON = 50 * 2**20  # bytes


def versions() -> dict[str, str]:
    """Versions of lorank and of what its results depend on, for provenance."""
    names = ("lorank", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
    return {name: version(name) for name in names}


def check_file(path: Path) -> None:
    """Refuse to write a file where a folder is, or where none can be made.

    Raises:
        OutputError: `path` is a folder, or stands below a file or in a folder that is not to be written to.

    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise OutputError(f"{path} cannot be written: {error.strerror}; give another output") from None
    if is_folder:
        raise OutputError(f"{path} is a folder; give the name of a file to write")
    if (problem := _problem_above(_real(path))) is not None:
        raise OutputError(f"{path} cannot be written: {problem}; give another output")


def _problem_above(path: Path) -> str | None:
    """Why nothing can be made at a path, by the nearest of the folders above it that is there."""
    below = next((parent for parent in path.parents if parent.exists()), None)
    if below is None or (below.is_dir() and os.access(below, os.W_OK)):
        return None
    return f"{below} is {'a file' if below.is_file() else 'not to be written to'}"


def check_unwritten(path: Path, *, same: bool = False, overwrite: bool = False) -> None:
    """Refuse to replace a file that a user did not ask to have replaced.

    Args:
        path: of the file.
        same: what would be written is what the file holds already: a command that is repeated.
        overwrite: the user asked for it.

    Raises:
        OutputError: `path` is there and holds something else, or is a folder.

    """
    check_file(path)
    if path.exists() and not (same or overwrite):
        raise OutputError(f"{path} is there already; give another output, or --overwrite to replace it")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` in the folder of `path`, wait for the disk, then rename: readers see the old file or the new one.

    The file's mode is what the umask says, whatever `write` made it.

    Raises:
        OutputError: `path` is a folder, or in a place that cannot be written to, or the disk is full. A file that was there
            is as it was.

    """
    check_file(path)
    # A short name: one that is nearly as long as the file system allows must not become too long by this.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files private
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if (problem := disk_problem(error)) is None:
            raise
        raise OutputError(f"{path} cannot be written: {problem}; make room, or give another output") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Where folders cannot be opened (Windows) they are left."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems without it say so; a full or broken disk says something else
            raise
    finally:
        os.close(handle)


def settle_folder(folder: Path) -> None:
    """Put all files of a folder onto the disk, with the modes that the umask says: safetensors makes files private."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            sync(path)
    sync(folder)


def disk_problem(error: BaseException) -> str | None:
    """What a disk, or who keeps it, refused, in a few words; None where an error is about something else.

    safetensors and torch.save have errors of their own for a disk that takes no more.
    """
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    text = one_line(error)
    kind = type(error).__name__
    if kind == "SafetensorError" and ("I/O error" in text or "IoError" in text):  # as older ones say it
        return text
    if kind == "RuntimeError" and any(
        said in text for said in ("PytorchStreamWriter", "file write failed", "iostream error", "inline_container")
    ):
        return "torch could not write all of it (is the disk full?)"
    return None


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. NaN and infinity are refused: JSON has no such numbers."""
    write_text(path, json_text(content) + "\n")


def json_text(content: Any) -> str:
    """`content` as indented JSON. NaN and infinity are refused: JSON has no such numbers."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deep, or too large.
        OSError: it cannot be read.

    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes; at most {LARGEST_JSON:,} are read")
    try:
        return json.loads(read_plain_text(path))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_plain_text(path: Path) -> str:
    """What a UTF-8 file holds; a pipe would be waited for, and a device has no end.

    Raises:
        OSError: no such file, or another thing of that name.
        ValueError: not UTF-8.

    """
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")
    return path.read_text(encoding="utf-8")


def json_values(content: Any) -> Any:
    """As JSON has it, at any depth: dataclasses as mappings, paths as strings, null in place of NaN and infinity."""
    if is_dataclass(content) and not isinstance(content, type):
        content = asdict(content)
    if isinstance(content, Mapping):
        return {key: json_values(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_values(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def copy_file(source: Path, path: Path) -> None:
    """Write what `source` holds, atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(source.read_bytes()))


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something already, or that cannot be made.

    Raises:
        OutputError: `folder` is a file, or not empty, or stands below one.

    """
    folder = _real(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; give the name of a new folder as output")
    if (problem := _problem_above(folder)) is not None:
        raise OutputError(f"{folder} cannot be made: {problem}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; when all went well it gets its name, else it goes: never half a folder.

    Several processes may write to one name at the same time: each writes a temporary folder of its own, and the first one
    that is ready gets the name. The others are refused, and what they wrote goes. A process that is killed leaves its
    temporary folder, `.NAME.XXXXXXXX.partial`, which is in nobody's way.

    Raises:
        OutputError: as `check_new_folder`, or the disk refuses, or another process was first.

    """
    check_new_folder(folder)
    folder = _real(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror}; give another output") from None
        try:
            yield partial
        except OutputError as error:  # by the name that the user gave
            raise OutputError(str(error).replace(str(partial), str(folder))) from None
        try:
            settle_folder(partial)
            # One step: it takes the place of nothing or of an empty folder, and fails on anything else.
            partial.rename(folder)
            sync(folder.parent)
        except OSError as error:
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            why = "another process has written it in the meantime" if taken else str(error.strerror)
            raise OutputError(f"{folder} is not written: {why}; give the name of a new folder as output") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _real(folder: Path) -> Path:
    """The folder that a link stands for: a rename would replace the link, or fail on it."""
    return Path(os.path.realpath(folder))


def tensors_described(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """What the header of a safetensors file of `size` bytes says of each tensor, and the first byte after the header.

    Raises:
        ValueError: no such header.
        AttributeError: the same.

    """
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length < size:
        raise ValueError("no header of safetensors")
    described = json.loads(file.read(length))
    return {name: tensor for name, tensor in described.items() if name != "__metadata__"}, 8 + length
