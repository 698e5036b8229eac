"""SHA-256 of the files of a run's adapter: whether it is still the one that was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorank.artefact import file_checksum
from lorank.serving.adapter_config import WEIGHTS


def sums_of(adapter: Path) -> dict[str, str]:
    """File -> SHA-256, of all in an adapter's folder that says what it computes: weights, config, names of labels, tokenizer."""
    files = sorted(path for path in adapter.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    return {path.name: file_checksum(path) for path in files}


def difference(adapter: Path, result: Mapping[str, Any]) -> str | None:
    """What of an adapter is not as it was measured, in words; None where all is.

    Args:
        adapter: its folder.
        result: of metrics.json; earlier versions wrote `adapter_sha256` alone, that of the weights, or nothing.

    """
    known = {WEIGHTS: result.get("adapter_sha256"), **(result.get("adapter_files") or {})}
    for name, wanted in known.items():
        path = adapter / Path(name).name  # never one of another folder, whatever the result says
        if not path.is_file():
            return f"{name} is missing"
        if wanted is not None and file_checksum(path) != wanted:
            return f"{name} is damaged or another one (its SHA-256 differs)"
    return None
