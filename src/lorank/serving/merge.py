"""`lorank merge`: the adapter added to its base model, saved as a model of its own, by PEFT."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft.utils import ModulesToSaveWrapper

from lorank.artefact import check_new_folder, new_folder
from lorank.errors import AdapterError, LorankWarning, one_line
from lorank.models.adapted_model import load_adapted
from lorank.models.label_names import read_label_names
from lorank.models.pretrained import read_tokenizer
from lorank.serving.adapter_config import NotPlainError
from lorank.serving.adapter_files import AdapterFiles, warn_if_idle
from lorank.serving.base_layers import BaseLayers, revision_for
from lorank.serving.labels import name_labels
from lorank.serving.names import DTYPES, choose
from lorank.serving.old_names import with_present_names


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

    PEFT types and LoRA variants that PEFT can merge are merged too, though they cannot be exported. A base model that is saved
    in 4 or 8 bit is turned into plain weights first: the merged model is `W + ΔW` in `dtype`, `W` being what the quantised
    weights stand for, and is not quantised. A classifier's config says the names of its labels (`label_names.json`).

    Args:
        adapter: folder of a PEFT adapter.
        output: a new folder.
        base: hub name or folder of the base model; None: the one that the adapter names.
        dtype: of the merged model: "auto" (as the base model is stored), "float32", "bfloat16" or "float16".
        max_shard_size: as `save_pretrained` takes it.
        trust_remote_code: let the base model's own code run.

    Raises:
        OutputError: `output` is there already.
        AdapterError: an adapter that cannot be read or is not for this base model, or weights that are not finite afterwards.

    Warns:
        LorankWarning: the adapter changes nothing, or does not say what its labels are called.

    """
    adapter, output = Path(adapter), Path(output)
    check_new_folder(output)
    chosen = choose("dtype", dtype, ("auto", *DTYPES))
    kind: Any = chosen if chosen == "auto" else getattr(torch, DTYPES[chosen])
    _check_size(max_shard_size)
    try:
        files = AdapterFiles.read(adapter)
    except NotPlainError:  # DoRA and the like, which PEFT merges; it checks what it loads
        pass
    else:
        layers = BaseLayers.of(files, base, trust_remote_code=trust_remote_code)
        files = with_present_names(files, layers)
        layers.check(files)
        if layers.tied_output in files.pairs:
            raise AdapterError(
                f"{layers.tied_output!r} shares its weight with the input embedding, which merging would change too; serve the "
                "adapter unmerged, or train without that module"
            )
        warn_if_idle(files)
    names = read_label_names(adapter)
    model: Any = load_adapted(adapter, base, dtype=kind, dequantise=True, trust_remote_code=trust_remote_code)
    if "Classification" in type(model.get_base_model()).__name__:
        own_head = any(isinstance(module, ModulesToSaveWrapper) for module in model.modules())
        name_labels(model.get_base_model(), adapter, names, own_head=own_head)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:  # not finite, or cannot be merged
        raise AdapterError(f"{adapter} cannot be merged: {one_line(error)}") from None
    with new_folder(output) as folder:
        merged.save_pretrained(str(folder), max_shard_size=max_shard_size)
        base_name = str(merged.config._name_or_path)
        revision = revision_for(model.peft_config["default"].to_dict(), base_name)
        _save_tokenizer({str(adapter): None, base_name: revision}, folder, trust_remote_code)
    return output


def _check_size(size: str) -> None:
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        raise AdapterError(f"max_shard_size {size!r} cannot be read: {error}; give a size such as 5GB") from None


def _save_tokenizer(sources: Mapping[str, str | None], folder: Path, trust_remote_code: bool) -> None:
    """That of the first source, each with its revision, that has one."""
    for source, revision in sources.items():
        try:
            tokenizer = read_tokenizer(source, AdapterError, trust_remote_code=trust_remote_code, revision=revision)
            tokenizer.save_pretrained(str(folder))
        except Exception as error:  # an adapter's folder rarely has one, and a base model need not have one either
            if (Path(source) / "tokenizer_config.json").is_file():
                warnings.warn(
                    f"{source}: the tokenizer there cannot be read ({one_line(error)}): it is left out",
                    LorankWarning,
                    stacklevel=3,
                )
        else:
            return
