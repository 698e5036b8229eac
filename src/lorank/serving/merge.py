"""`lorank merge`: the adapter added to its base model, saved as a model of its own, by PEFT."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from lorank.artefact import check_new_folder, new_folder
from lorank.errors import AdapterError
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.training.adapted_model import load_adapted
from lorank.training.model import NOT_LOADABLE

_DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def merge(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
) -> Path:
    """Load the base model, add `ΔW` of every module through PEFT, and save it with its tokenizer, in shards.

    Args:
        adapter: folder of a LoRA adapter.
        output: a new folder.
        base: hub name or folder of the base model; None: the one that the adapter names.
        dtype: of the merged model: "auto" (as the base model is stored), "float32", "bfloat16" or "float16".
        max_shard_size: as `save_pretrained` takes it.
        trust_remote_code: let the base model's own code run.

    Raises:
        OutputError: `output` is there already.
        AdapterError: an adapter that cannot be read or is not for this base model, or weights that are not finite afterwards.

    """
    adapter, output = Path(adapter), Path(output)
    check_new_folder(output)
    if dtype not in _DTYPES:
        raise AdapterError(f"dtype {dtype!r} is unknown; allowed: {', '.join(_DTYPES)}")
    files = AdapterFiles.read(adapter)
    layers = BaseLayers.of(files, base, trust_remote_code=trust_remote_code)
    layers.check(files)
    model: Any = load_adapted(adapter, layers.name, dtype=_DTYPES[dtype], trust_remote_code=trust_remote_code)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise AdapterError(f"{adapter} cannot be merged: {error}; merge into --dtype float32") from None
    with new_folder(output) as folder:
        merged.save_pretrained(str(folder), max_shard_size=max_shard_size)
        _save_tokenizer(files, layers.name, folder, trust_remote_code)
    return output


def _save_tokenizer(files: AdapterFiles, name: str, folder: Path, trust_remote_code: bool) -> None:
    for source in (str(files.folder), name):
        try:
            AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code).save_pretrained(str(folder))
            return
        except (*NOT_LOADABLE, TypeError):  # Marian's tokenizer does not look whether its files are there
            continue  # an adapter's folder rarely has one, and a base model need not have one either
