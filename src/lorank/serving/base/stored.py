"""The layers of a base model from its own files, config.json and the headers of its weights: neither built nor loaded.

A second way to what `lorank.serving.base_layers.BaseLayers.read` finds in the built model, and only where it is certain to be
the same: a known architecture, whose layers by the config are the very matrices that the weights have.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lorank.artefact import read_json, tensors_described
from lorank.received_files import check_model_config
from lorank.serving.base.architectures import ARCHITECTURES, OUTPUT, Architecture, Config, Shapes, whole_number

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
Matrix = tuple[str, tuple[int, ...]]  # dtype and shape
_PLAIN = {"F16", "BF16", "F32", "F64"}
# Under these keys a config asks for other layers, other names, or weights that are packed.
_UNUSUAL: tuple[str, ...] = ("quantization_config", "compression_config", "auto_map", "add_cross_attention")
_UNUSUAL += ("pruned_heads", "text_config", "num_labels")


@dataclass(frozen=True)
class StoredLayers:
    """What a base model's files say of its layers; fields as those of `BaseLayers`."""

    shapes: Mapping[str, tuple[int, int]]
    config: Any
    vocabulary: Mapping[str, tuple[int, ...]]
    output_layer: str | None
    tied_output: str | None


def stored_layers(
    name: str, task_type: str, modules: Iterable[str], revision: str | None = None
) -> StoredLayers | None:
    """The layers of a base model, or None where its files leave a doubt: then it has to be built.

    Args:
        name: a folder, or a hub name whose files are in the cache.
        task_type: PEFT's, of the adapter.
        modules: names that the adapter has; each of them has to be a matrix of the weights.
        revision: of a hub name; None: the main branch.

    """
    folder = _folder(name, revision)
    if folder is None:
        return None
    try:
        config = _json(folder / "config.json")
        check_model_config(config)
        architecture = ARCHITECTURES.get(config["model_type"])
        if architecture is None or task_type not in architecture.heads or any(config.get(key) for key in _UNUSUAL):
            return None
        two = architecture.encodes_and_decodes
        if config.get("is_encoder_decoder", two) is not two:
            return None
        layers = architecture.layers(config)
        embedding = (whole_number(config, "vocab_size"), whole_number(config, architecture.width))
        if (config.get("pad_token_id", architecture.padding) or 0) >= embedding[0]:
            return None  # no model can be built
        if not _confirmed(layers, embedding, architecture, _matrices(folder)):
            return None
        found = {f"{architecture.prefix}.{module}": shape for module, shape in layers.items()}
        if not set(modules) <= set(found):
            return None
        return _described(task_type, found, embedding, architecture, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError):
        return None  # damaged, or otherwise than expected: building the model says what is wrong


def _confirmed(
    layers: Shapes, embedding: tuple[int, int], architecture: Architecture, matrices: Mapping[str, Matrix]
) -> bool:
    """Whether the matrices of the pretrained model in the weights are these layers and tables, and no others."""
    start = f"{architecture.prefix}."
    if any(name.startswith(start) for name in matrices):  # beside them are those of some head
        matrices = {name.removeprefix(start): each for name, each in matrices.items() if name.startswith(start)}
    needed = {f"{module}.weight": shape for module, shape in layers.items()}
    needed[f"{architecture.table or architecture.embedding}.weight"] = embedding
    found = {name: matrix for name, matrix in matrices.items() if name not in architecture.others}
    plain = all(dtype in _PLAIN for dtype, _ in found.values())
    return plain and {name: shape for name, (_, shape) in found.items()} == needed


def _described(
    task_type: str, layers: Shapes, embedding: tuple[int, int], architecture: Architecture, config: Config
) -> StoredLayers | None:
    names = config.get("id2label")
    if task_type == "SEQ_CLS" and config.get("_num_labels") is not None:
        return None  # labels as configs of long ago say them
    head = architecture.heads[task_type](config, 2 if names is None else len(names))
    shapes = head | layers if architecture.head_first else layers | head
    vocabulary: dict[str, tuple[int, ...]] = {f"{architecture.prefix}.{architecture.embedding}": embedding}
    output = OUTPUT if OUTPUT in head else None
    if output is not None:
        vocabulary[output] = head[output]
    tied = config.get("tie_word_embeddings", architecture.tied)
    return StoredLayers(shapes, SimpleNamespace(**config), vocabulary, output, output if tied else None)


def _folder(name: str, revision: str | None) -> Path | None:
    """The folder of a model's files: as it is named, or in the hub's cache."""
    if os.path.isdir(name):  # Path fails on names that are too long
        return Path(name)
    if name.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(path)
    return content


def _matrices(folder: Path) -> dict[str, Matrix]:
    """All tensors of two and more dimensions, by the headers.

    Raises:
        OSError: no such file.
        ValueError: damaged, or not what the index says.
        KeyError: damaged.

    """
    if (folder / _WEIGHTS).is_file():
        return _header(folder / _WEIGHTS, None)
    placed: dict[str, set[str]] = {}
    for name, file in _json(folder / _INDEX)["weight_map"].items():
        placed.setdefault(file, set()).add(name)
    return {name: each for file, names in placed.items() for name, each in _header(folder / file, names).items()}


def _header(path: Path, names: Collection[str] | None) -> dict[str, Matrix]:
    with path.open("rb") as file:
        tensors, _ = tensors_described(file, path.stat().st_size)
    if names is not None and set(names) != set(tensors):
        raise ValueError(path)
    found = {name: (each["dtype"], tuple(each["shape"])) for name, each in tensors.items()}
    return {name: (dtype, shape) for name, (dtype, shape) in found.items() if len(shape) > 1}
