"""Finished parts of the runs, kept as files: a command that was stopped continues behind the last one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorank.artefact import checksum, read_json, write_json
from lorank.errors import OutputError


class KeptParts:
    """Parts of one question in a folder.

    Args:
        folder: is made where it is not there.
        question: what decides the parts.

    Raises:
        OutputError: the folder holds parts of another question.

    """

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        self.folder, path = folder, folder / "question.json"
        asked = {"format": "lorank.question", "version": 1, **question}
        if path.is_file():
            held = self._read(path)
            if checksum(held) != checksum(asked):
                different = [key for key in {**held, **asked} if held.get(key) != asked.get(key)]
                raise OutputError(
                    f"{folder} holds parts of another question ({', '.join(different)} differ); give another --output, or the "
                    "same question to continue"
                )
        else:
            write_json(path, asked)

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return (self.folder / f"{name}.json").is_file()

    def losses(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The losses of a part, float64 of any shape; made where they are not there yet."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            held = self._read(path)
            try:
                return np.array(held["losses"], dtype=np.float64)  # null is NaN
            except (KeyError, TypeError, ValueError):
                raise OutputError(f"{path} is damaged; remove it, and it is made again") from None
        made = np.asarray(make(), dtype=np.float64)
        write_json(path, {"losses": _without_nan(made.tolist())})
        return np.where(np.isfinite(made), made, np.nan)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content = read_json(path)
        except (ValueError, OSError) as error:
            raise OutputError(f"{path} is damaged ({error}); remove it, and it is made again") from None
        if not isinstance(content, dict):
            raise OutputError(f"{path} is damaged; remove it, and it is made again")
        return content


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return values if math.isfinite(values) else None
