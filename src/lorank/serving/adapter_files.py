"""A LoRA adapter as its two files say it, adapter_config.json and adapter_model.safetensors, from whatever tool they come."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorank.artefact import write_atomically, write_json
from lorank.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Starts after which the base model is the one that was loaded; others (PiSSA, OLoRA, CorDA, LoftQ) change it on loading.
_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_FEATURES = {
    "use_dora": "DoRA, whose weights are no low-rank sum",
    "lora_bias": "a bias inside of the adapter",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "expert tensors in place of layers",
    "alora_invocation_tokens": "activated LoRA, which is on for a part of the text only",
}


@dataclass(frozen=True)
class LoraPair:
    """The two tensors of one module: `A: (r, d_in)`, `B: (d_out, r)`, in the dtype of the file."""

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Units of rank that the tensors have, whatever the config says."""
        return len(self.a)

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)` of the layer."""
        return len(self.b), self.a.shape[1]


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter without a model.

    Attributes:
        config: the content of adapter_config.json.
        pairs: full module name -> its two tensors, in the order of the file.
        saved_modules: tensors of modules that were trained whole (heads), under their names in the file.
        folder: where it was read from.

    """

    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    saved_modules: Mapping[str, torch.Tensor]
    folder: Path

    @classmethod
    def read(cls, folder: str | Path) -> "AdapterFiles":
        """Read and check the files of an adapter; no model is needed, and nothing but JSON and safetensors is read.

        Raises:
            AdapterError: missing or damaged files, another PEFT type, a LoRA that is more than `W + s B A`, tensors that are
                missing, not finite, or of other shapes than the config says.

        """
        folder = Path(folder)
        config = _read_config(folder)
        factors: dict[str, dict[str, torch.Tensor]] = {}
        saved: dict[str, torch.Tensor] = {}
        for key, tensor in _read_tensors(folder).items():
            module, part = _split(key, folder)
            if part is None:
                saved[key] = tensor
            else:
                factors.setdefault(module, {})[part] = tensor
        if not factors:
            raise AdapterError(f"{folder} holds no LoRA tensors; give the folder of a trained LoRA adapter")
        pairs = {module: _pair(module, found, folder) for module, found in factors.items()}
        files = cls(config, pairs, saved, folder)
        files._check_ranks()
        return files

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors of the adapter."""
        found = [tensor.dtype for pair in self.pairs.values() for tensor in (pair.a, pair.b)]
        widest = found[0]
        for dtype in found[1:]:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def largest_rank(self) -> int:
        """The largest rank of any module, by its tensors."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def parameters(self) -> int:
        """Adapter parameters, without modules that were trained whole."""
        return sum(pair.a.numel() + pair.b.numel() for pair in self.pairs.values())

    def pattern(self, field: str, module: str, default: Any) -> Any:
        """What `rank_pattern` or `alpha_pattern` says for a module, as PEFT reads it, else the default of the config."""
        pattern = self.config.get(field) or {}
        return pattern.get(get_pattern_key(list(pattern), module), default)

    def peft_scales(self) -> dict[str, float]:
        """The factor of `B A` of every module under PEFT's rule, `alpha_m / r_m`, or `alpha_m / sqrt(r_m)` with rsLoRA."""
        scales = {}
        for module in self.pairs:
            alpha = self.pattern("alpha_pattern", module, self.config["lora_alpha"])
            rank = self.pattern("rank_pattern", module, self.config["r"])
            scales[module] = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        return scales

    def without_padding(self) -> "AdapterFiles":
        """Leave out units of rank whose row of A and column of B are both zero: they do nothing and cannot learn.

        The scale of a module changes with its rank, so the result is for folding and counting, not for saving as it is.
        """
        kept = {}
        for module, pair in self.pairs.items():
            used = pair.a.ne(0).any(1) | pair.b.ne(0).any(0)
            if used.any():
                kept[module] = LoraPair(pair.a[used], pair.b[:, used])
        return replace(self, pairs=kept)

    def write(self, folder: Path) -> None:
        """Write both files; each whole or not at all."""
        tensors = dict(self.saved_modules)
        for module, pair in self.pairs.items():
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = pair.a.contiguous()
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = pair.b.contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, dict(self.config))
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    def _check_ranks(self) -> None:
        for module, pair in self.pairs.items():
            rank = self.pattern("rank_pattern", module, self.config["r"])
            if rank != pair.rank:
                raise AdapterError(
                    f"{self.folder}: {CONFIG} says rank {rank} for {module!r} and its tensors have {pair.rank}, which no tool "
                    "can load; take both files from the same training, or, as PEFT sorts patterns when it saves them, put "
                    "overlapping ones in order"
                )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} has no {CONFIG}; give the folder of a PEFT adapter")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path}: damaged or not JSON ({error}); take it from the training again") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise AdapterError(f"{path}: JSON, but not the config of a PEFT adapter (no peft_type)")
    if config["peft_type"] != "LORA":
        raise AdapterError(
            f"{path}: peft_type is {config['peft_type']!r}, only LORA can be served as one; make a LoRA of it first "
            "(peft.convert_to_lora, or lorank's own AdaLoRA, whose adapters are LoRA)"
        )
    _check_number(path, "r", config.get("r"), int, 1)
    _check_number(path, "lora_alpha", config.get("lora_alpha"), (int, float), 0)
    for field, kind, least in (("rank_pattern", int, 1), ("alpha_pattern", (int, float), 0)):
        for key, value in (config.get(field) or {}).items():
            _check_number(path, f"{field} of {key!r}", value, kind, least)
    for key, what in _FEATURES.items():
        if config.get(key):
            raise AdapterError(f"{path}: {key} is on: {what}; only W + s B A can be exported and verified")
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: bias is {config['bias']!r}: biases of the base model were trained; allowed: 'none'"
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r}, which changes the base weights on loading; save it with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )
    return config


def _check_number(path: Path, what: str, value: Any, kind: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < float("inf"):
        allowed = "a whole number from 1" if kind is int else "a number from 0"
        raise AdapterError(f"{path}: {what} is {value!r}; allowed: {allowed}")


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).is_file()), None)
        if pickled:
            raise AdapterError(f"{folder / pickled} is a pickle, which is not read; save the adapter as safetensors")
        raise AdapterError(f"{folder} has no {WEIGHTS}; give the folder of a trained adapter")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path}: damaged or cut off ({error}); copy it again from the training") from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise AdapterError(
                f"{path}: {key} holds NaN or infinity; the training diverged, take an earlier checkpoint"
            )
    return tensors


def _split(key: str, folder: Path) -> tuple[str, str | None]:
    """Full module name, and "A" or "B", or None for a tensor of a module that was trained whole."""
    if ".lora_" not in key:
        return key, None
    for part in ("A", "B"):
        for ending in (f".lora_{part}.weight", f".lora_{part}.default.weight"):
            if key.endswith(ending):
                return key.removesuffix(ending).removeprefix(_PREFIX), part
    what = key.rpartition(".lora_")[2]
    known = {"magnitude": "DoRA", "embedding": "an embedding", "E": "AdaLoRA", "B.bias": "a bias of the adapter"}
    named = next((name for start, name in known.items() if what.startswith(start)), "unknown to lorank")
    raise AdapterError(f"{folder / WEIGHTS}: {key!r} is {named}; only lora_A and lora_B of linear layers can be served")


def _pair(module: str, found: Mapping[str, torch.Tensor], folder: Path) -> LoraPair:
    if missing := {"A", "B"} - set(found):
        raise AdapterError(f"{folder / WEIGHTS}: {module!r} has no lora_{missing.pop()}; the file is incomplete")
    a, b = found["A"], found["B"]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise AdapterError(
            f"{folder / WEIGHTS}: {module!r} has A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)}; allowed: (r, d_in) "
            "and (d_out, r) of a linear layer"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise AdapterError(f"{folder / WEIGHTS}: {module!r} is {a.dtype}; allowed: floating-point tensors")
    return LoraPair(a, b)
