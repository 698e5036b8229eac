"""A LoRA adapter as its two files say it, adapter_config.json and adapter_model.safetensors, from whatever tool they come."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorank.artefact import write_atomically, write_json
from lorank.errors import AdapterError, LorankWarning
from lorank.module_names import PEFT_PREFIX, in_base_model, is_adapter_tensor, parent_of
from lorank.serving.adapter_config import CONFIG, WEIGHTS, NotPlainError, check_expressions, read_config
from lorank.serving.peft_rules import pattern_key

_NOTHING = 1e-30
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
        copies: tensors of the base model that PEFT saves beside an adapted vocabulary (`.base_layer.`); they were not
            trained, and no export keeps them.
        prefixed: whether names begin with `base_model.model.`, as PEFT writes and reads them.
        named: whether names have the adapter's name in them (`.lora_A.default.weight`), which PEFT reads and few others.

    """

    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    saved_modules: Mapping[str, torch.Tensor]
    folder: Path
    copies: Mapping[str, torch.Tensor] = field(default_factory=dict)
    prefixed: bool = True
    named: bool = False

    @classmethod
    def read(cls, folder: str | Path, *, experts: bool = False) -> "AdapterFiles":
        """Read and check the files of an adapter; no model is needed, and nothing but JSON and safetensors is read.

        Args:
            folder: with both files.
            experts: whether parameters of fused experts may have adapters. Names in the file do not say of which parameter
                such tensors are, so they are not compared with the config's ranks, and no export takes them.

        Raises:
            NotPlainError: another PEFT type, or a LoRA that is more than `W + s B A`.
            AdapterError: missing or damaged files, tensors that are missing, not finite, or of other shapes than the config
                says.

        """
        folder = Path(folder)
        config = read_config(folder, experts=experts)
        factors: dict[str, dict[str, torch.Tensor]] = {}
        saved, copies, names = dict[str, torch.Tensor](), dict[str, torch.Tensor](), list[str]()
        for key, tensor in _read_tensors(folder).items():
            module, part = _split(key, folder)
            if part is None:
                (copies if ".base_layer." in key else saved)[key] = tensor
                continue
            if part in factors.setdefault(module, {}):
                raise AdapterError(f"{folder / WEIGHTS}: lora_{part} of {module!r} is there twice, under two names")
            factors[module][part] = tensor
            names.append(key)
        if not factors:
            raise AdapterError(f"{folder} holds no LoRA tensors; give the folder of a trained LoRA adapter")
        pairs = {module: _pair(module, found, folder) for module, found in factors.items()}
        prefixed, named = all(key.startswith(PEFT_PREFIX) for key in names), any(".default." in key for key in names)
        files = cls(config, pairs, saved, folder, copies, prefixed, named)
        check_expressions(config, pairs, folder)
        if not config.get("target_parameters"):
            files._check_ranks()
        return files

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors of the adapter."""
        found = {tensor.dtype for pair in self.pairs.values() for tensor in (pair.a, pair.b)}
        return reduce(torch.promote_types, found)

    @property
    def largest_rank(self) -> int:
        """The largest rank of any module, by its tensors."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def parameters(self) -> int:
        """Adapter parameters, without modules that were trained whole."""
        return sum(pair.a.numel() + pair.b.numel() for pair in self.pairs.values())

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Names of modules that were trained whole, as the config has them, each once."""
        return tuple(dict.fromkeys(self.config.get("modules_to_save") or ()))

    @property
    def trained_whole(self) -> tuple[str, ...]:
        """Full names of modules that were trained whole and are in the file."""
        return tuple(sorted({in_base_model(parent_of(key)) for key in self.saved_modules}))

    def pattern(self, field: str, module: str, default: Any) -> Any:
        """What `rank_pattern` or `alpha_pattern` says for a module, as PEFT reads it, else the default of the config."""
        pattern = self.config.get(field) or {}
        return pattern.get(pattern_key(pattern, module), default)

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
        """Write both files, under PEFT's names; each whole or not at all."""
        tensors = dict(self.saved_modules)
        for module, pair in self.pairs.items():
            tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = pair.a.contiguous()
            tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = pair.b.contiguous()
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


def warn_if_idle(adapter: AdapterFiles) -> None:
    """Warn where every update `B A` is as good as zero: not trained, or lost on the way.

    Warns:
        LorankWarning: names the adapter.

    """
    if all(min(float(t.abs().max()) for t in (pair.a, pair.b)) < _NOTHING for pair in adapter.pairs.values()):
        warnings.warn(
            f"{adapter.folder} changes nothing: B (or A) of every module is below {_NOTHING:g}; was it trained, and saved after "
            "training?",
            LorankWarning,
            stacklevel=3,
        )


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
        if tensor.numel() == 0:
            raise AdapterError(
                f"{path}: {key} is empty: a shard, not the tensor (DeepSpeed's ZeRO-3 leaves such ones in the model); gather it "
                "before saving, as trainer.save_model does"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise AdapterError(
                f"{path}: {key} holds NaN or infinity; the training diverged, take an earlier checkpoint"
            )
    return tensors


def _split(key: str, folder: Path) -> tuple[str, str | None]:
    """Full module name, and "A" or "B", or None for a tensor of a module that was trained whole."""
    if not is_adapter_tensor(key):
        return key, None
    for part in ("A", "B"):
        for ending in (f".lora_{part}.weight", f".lora_{part}.default.weight"):
            if key.endswith(ending):
                return in_base_model(key.removesuffix(ending)), part
    what = key.rpartition(".lora_")[2]
    known = {"magnitude": "DoRA", "embedding": "an embedding", "E": "AdaLoRA", "B.bias": "a bias of the adapter"}
    named = next((name for start, name in known.items() if what.startswith(start)), "unknown to lorank")
    raise NotPlainError(
        f"{folder / WEIGHTS}: {key!r} is {named}; only lora_A and lora_B of linear layers can be served as an adapter"
    )


def _pair(module: str, found: Mapping[str, torch.Tensor], folder: Path) -> LoraPair:
    if missing := {"A", "B"} - set(found):
        raise AdapterError(f"{folder / WEIGHTS}: {module!r} has no lora_{missing.pop()}; the file is incomplete")
    a, b = found["A"], found["B"]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise AdapterError(
            f"{folder / WEIGHTS}: {module!r} has A of shape {tuple(a.shape)} and B of shape {tuple(b.shape)}; allowed: (r, d_in) "
            "and (d_out, r) of a linear layer"
        )
    if wrong := [tensor.dtype for tensor in (a, b) if tensor.dtype not in _DTYPES]:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise AdapterError(f"{folder / WEIGHTS}: {module!r} is {wrong[0]}; allowed: floating-point tensors, {allowed}")
    return LoraPair(a, b)
