"""Adapters made for tests: tensors and a config, without training, for a base model that is known by its shapes."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from lorank.serving.adapter_files import AdapterFiles, LoraPair
from lorank.serving.base_layers import BaseLayers

PROJECTIONS = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8), "gate_proj": (12, 8)}
PROJECTIONS |= {"up_proj": (12, 8), "down_proj": (8, 12)}
LAYERS = 3


class LlamaConfig:
    model_type = "llama"


def llama_layers() -> BaseLayers:
    shapes = {
        f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in PROJECTIONS.items()
    }
    return BaseLayers("tiny", {**shapes, "lm_head": (16, 8)}, LlamaConfig())


def make_adapter(
    ranks: dict[str, int],
    alphas: dict[str, float] | float,
    *,
    rslora: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> AdapterFiles:
    """A trained adapter of these ranks (0: no adapter), as PEFT saves it; one alpha means no alpha_pattern."""
    source, base = torch.Generator().manual_seed(seed), llama_layers()
    pairs = {
        name: LoraPair(
            torch.randn(rank, base.shapes[name][1], generator=source).to(dtype),
            torch.randn(base.shapes[name][0], rank, generator=source).to(dtype),
        )
        for name, rank in ranks.items()
        if rank
    }
    adapted = {name: rank for name, rank in ranks.items() if rank}
    pattern = {} if isinstance(alphas, (int, float)) else {f"^{name}$": alphas[name] for name in adapted}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": max(adapted.values()),
        "lora_alpha": alphas if isinstance(alphas, (int, float)) else max(pattern.values()),
        "rank_pattern": {f"^{name}$": rank for name, rank in adapted.items()},
        "alpha_pattern": pattern,
        "target_modules": list(adapted),
        "use_rslora": rslora,
        **config,
    }
    return AdapterFiles(content, pairs, {}, Path("adapter"))


@st.composite
def adapters(draw: st.DrawFn) -> AdapterFiles:
    """Random ranks (0 included), alphas, rsLoRA on or off, and dtypes."""
    modules = [name for name in llama_layers().shapes if name != "lm_head"]
    ranks = draw(
        st.lists(st.integers(0, 9), min_size=len(modules), max_size=len(modules)).filter(any)  # 9 is no rank of TGI's
    )
    alpha = st.floats(0.25, 64, width=32)
    alphas: Any = draw(st.one_of(alpha, st.lists(alpha, min_size=len(modules), max_size=len(modules))))
    return make_adapter(
        dict(zip(modules, ranks, strict=True)),
        dict(zip(modules, alphas, strict=True)) if isinstance(alphas, list) else alphas,
        rslora=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        seed=draw(st.integers(0, 9)),
    )


def uniform(rank: int, alpha: float = 16.0, **config: Any) -> AdapterFiles:
    """The same rank in every module, and no patterns."""
    ranks = {name: rank for name in llama_layers().shapes if name != "lm_head"}
    return make_adapter(ranks, alpha, **{"rank_pattern": {}, **config})
