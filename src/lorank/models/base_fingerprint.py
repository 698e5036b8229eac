"""What a base model is, to be recognised again: its commit on the hub, or sums over the files of its folder."""

import hashlib
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import try_to_load_from_cache

from lorank.artefact import checksum, file_checksum, tensors_described
from lorank.models.loading import config_of
from lorank.models.pretrained import Pretrained

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Of the files that `from_pretrained` reads, those that decide numbers.
_OTHERS = (
    *("*.index.json", "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab*", "merges.txt", "bpe.codes", "*.model", "*.spm", "*.vocab", "*.py"),
    "chat_template*",
)
WHOLE = 512 * 2**20  # bytes of a file that are summed in about a second
_SAMPLE = 4096


def base_fingerprint(base: Pretrained) -> dict[str, Any]:
    """Sums of a base model and its tokenizer.

    A folder gives a sum for each file. Up to 512 MiB it is the SHA-256 of all bytes. Of larger weights it is that of the size,
    of names, shapes and types of all tensors, and of the first and last 4 KiB of each tensor: training, merging or converting
    weights changes these; an edit of single entries in the middle of a tensor may not. A hub name gives the commit.

    Returns:
        JSON values: `{"files": {name: sum}}` or `{"commit": hash}`; {} where neither is known.

    """
    folder = Path(base.name)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        sums = {
            path.name: file_sum(path) for path in files if any(fnmatch(path.name, p) for p in (*_WEIGHTS, *_OTHERS))
        }
        return {"files": sums}
    config_of(base)  # is in the cache of the hub's client then, or there is no such model
    path = try_to_load_from_cache(base.name, "config.json", revision=base.revision or "main")
    commit = re.search(r"snapshots/([0-9a-f]{40})/", Path(path).as_posix()) if isinstance(path, str) else None
    return {"commit": commit[1]} if commit else {}


def base_sum(base: Pretrained) -> str:
    """`base_fingerprint` as one sum."""
    return checksum(base_fingerprint(base))


def file_sum(path: Path, whole: int = WHOLE) -> str:
    """SHA-256 of a file, or of samples of it where it has more than `whole` bytes."""
    size = path.stat().st_size
    if size <= whole:
        return file_checksum(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        for start, end in _spans(path, file, size):
            for place in {start: None, max(start, end - _SAMPLE): None}:
                file.seek(place)
                digest.update(file.read(min(_SAMPLE, end - place)))
    return f"sampled {digest.hexdigest()}"


def _spans(path: Path, file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """First and last byte of each tensor, after the header; of other files than safetensors, of 4,096 equal parts."""
    if path.suffix == ".safetensors":
        try:
            described, first = tensors_described(file, size)
            offsets = sorted(tensor["data_offsets"] for tensor in described.values())
            head = [(k, min(k + _SAMPLE, first)) for k in range(0, first, _SAMPLE)]
            return [*head, *((first + start, first + end) for start, end in offsets)]
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # damaged: loading it will say so
    step = -(-size // 4096)
    return [(k, min(k + step, size)) for k in range(0, size, step)]
