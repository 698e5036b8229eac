"""Forms of one adapter: the same `s_m B_m A_m` written so that an engine, or every engine, scales it right.

A trained adapter of mixed ranks says its scales in `rank_pattern` and `alpha_pattern`, and no two families of engines read
these alike (`lorank.serving.engines`). What all agree on is the product of the tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from lorank.errors import AdapterError
from lorank.lora_options import exactly, whole
from lorank.serving.adapter_files import AdapterFiles, LoraPair
from lorank.serving.base_layers import BaseLayers
from lorank.serving.engines import joined_with, stackable_rank
from lorank.serving.projections import projections_of


def for_any(adapter: AdapterFiles, base: BaseLayers, dtype: torch.dtype | None = None) -> AdapterFiles:
    """The form that every engine scales right: `B' = s B`, all ranks padded with zeros to one, `lora_alpha = r`, no patterns.

    That one rank is the largest rank, rounded up to 8 or a multiple of 16 (`stackable_rank`). A projection that any layer
    has gets zeros in every layer that lacks it, and so do modules that an engine joins with an adapted one. Padded units
    have a zero row of A and a zero column of B, hence no gradient: this form is for serving, not for training on.
    """
    folded = _scaled(adapter, adapter.peft_scales(), dtype)
    rank = stackable_rank(folded.largest_rank)
    missing = [m for p in projections_of(folded, base) for m in (p.everywhere or {}).values() if m not in folded.pairs]
    wanted = dict.fromkeys([*folded.pairs, *missing])
    for module in list(wanted):
        wanted |= dict.fromkeys(
            name for first in joined_with(module, base) for name in (first, *joined_with(first, base))
        )
    kind = folded.dtype
    pairs = {}
    order = {module: place for place, module in enumerate(base.shapes)}
    for module in sorted(wanted, key=lambda module: order.get(module, len(order))):
        pair = folded.pairs.get(module)
        d_out, d_in = pair.shape if pair else base.shapes[module]
        a, b = torch.zeros(rank, d_in, dtype=kind), torch.zeros(d_out, rank, dtype=kind)
        if pair:
            a[: pair.rank], b[:, : pair.rank] = pair.a, pair.b
        pairs[module] = LoraPair(a, b)
    return _described(folded, pairs, rank, rank, {}, {})


def for_vllm(adapter: AdapterFiles, base: BaseLayers | None = None, dtype: torch.dtype | None = None) -> AdapterFiles:
    """Compact, right in PEFT and every vLLM: `B' = s B`, `alpha_m = r_m`, and `lora_alpha = r`, the largest rank."""
    folded = _scaled(adapter, adapter.peft_scales(), dtype)
    ranks = {module: pair.rank for module, pair in folded.pairs.items()}
    return _described(folded, folded.pairs, folded.largest_rank, folded.largest_rank, ranks, ranks)


def for_llama_cpp(
    adapter: AdapterFiles, base: BaseLayers | None = None, dtype: torch.dtype | None = None
) -> AdapterFiles:
    """Compact, right where the scale is `lora_alpha / (rank of the tensor)`: `B' = (s r_m / alpha) B`, one alpha for all.

    llama.cpp, Ollama, TensorRT-LLM, PEFT, and vLLM from 0.32. alpha is the largest rank, a whole number.
    """
    bare, scales = adapter.without_padding(), adapter.peft_scales()
    ranks = {module: pair.rank for module, pair in bare.pairs.items()}
    alpha = max(ranks.values(), default=1)
    folded = _scaled(adapter, {module: scales[module] * rank / alpha for module, rank in ranks.items()}, dtype)
    return _described(folded, folded.pairs, alpha, alpha, ranks, {})


def for_peft(adapter: AdapterFiles, base: BaseLayers | None = None, dtype: torch.dtype | None = None) -> AdapterFiles:
    """Compact, right in PEFT and vLLM from 0.32, and trainable: tensors as they are, without padding, `alpha_m = s r_m`."""
    scales = adapter.peft_scales()
    bare = _scaled(adapter, dict.fromkeys(adapter.pairs, 1.0), dtype)
    ranks = {module: pair.rank for module, pair in bare.pairs.items()}
    alphas = {module: whole(float(f"{scales[module] * rank:.12g}")) for module, rank in ranks.items()}
    fullest = max(ranks, key=lambda module: ranks[module])
    return _described(bare, bare.pairs, ranks[fullest], alphas[fullest], ranks, alphas)


FORMS: Mapping[str, Callable[..., AdapterFiles]] = {
    "any": for_any,
    "vllm": for_vllm,
    "llama.cpp": for_llama_cpp,
    "peft": for_peft,
}


def _scaled(adapter: AdapterFiles, scales: Mapping[str, float], dtype: torch.dtype | None) -> AdapterFiles:
    """The adapter without padding, `B` times a factor in fp32 (or wider), then in the dtype of the file or in `dtype`.

    Raises:
        AdapterError: nothing but zeros, or a number that `dtype` cannot hold.

    """
    kind, bare = dtype or adapter.dtype, adapter.without_padding()
    if not bare.pairs:
        raise AdapterError(f"{adapter.folder} holds zeros only, there is nothing to export; give a trained adapter")
    pairs = {}
    for module, pair in bare.pairs.items():
        wide = torch.promote_types(pair.b.dtype, torch.float32)
        found = LoraPair(pair.a.to(kind), (pair.b.to(wide) * scales[module]).to(kind))
        for tensor in (found.a, found.b):
            if not bool(torch.isfinite(tensor.float()).all()):
                raise AdapterError(
                    f"{module!r} times its scale {scales[module]:g} is above what {kind} can hold; export with --dtype float32"
                )
        pairs[module] = found
    return replace(bare, pairs=pairs)


def _described(
    adapter: AdapterFiles,
    pairs: Mapping[str, LoraPair],
    rank: int,
    alpha: float,
    rank_pattern: Mapping[str, int],
    alpha_pattern: Mapping[str, float],
) -> AdapterFiles:
    """The adapter with these tensors and a config that says them."""
    config: dict[str, Any] = {
        **adapter.config,
        "r": rank,
        "lora_alpha": whole(alpha),
        "rank_pattern": {exactly(module): value for module, value in rank_pattern.items()},
        "alpha_pattern": {exactly(module): value for module, value in alpha_pattern.items()},
        "target_modules": list(pairs),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": list(dict.fromkeys(adapter.config.get("modules_to_save") or ()))
        if adapter.saved_modules
        else None,
    }
    return replace(adapter, pairs=pairs, config=config, copies={}, prefixed=True, named=False)
