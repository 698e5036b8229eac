"""Tiny random models with fused experts, of the layouts that there are."""

from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    set_seed,
)

_SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts_per_tok": 2,
    "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 1,
}  # fmt: skip
_HEADS: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
# Two heads, whose queries, keys and values go through smaller ranks; the first block is dense.
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 4,
}  # fmt: skip
LAYOUTS = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek")


def config_of(layout: str) -> Any:
    if layout == "mixtral":
        return MixtralConfig(**_SIZES, **_HEADS, intermediate_size=12, num_local_experts=4)
    if layout == "qwen3-moe":
        return Qwen3MoeConfig(**_SIZES, **_HEADS, intermediate_size=24, moe_intermediate_size=12, num_experts=4)
    if layout == "gpt-oss":
        return GptOssConfig(**_SIZES, **_HEADS, intermediate_size=12, num_local_experts=4)
    return DeepseekV3Config(**_SIZES, **_LATENT, intermediate_size=24, moe_intermediate_size=12)


def make(layout: str) -> PreTrainedModel:
    """A model in fp32 (PEFT's experts know no fp64), the same each time."""
    set_seed(0)
    kinds: dict[str, Any] = {
        "mixtral": MixtralForCausalLM, "qwen3-moe": Qwen3MoeForCausalLM, "gpt-oss": GptOssForCausalLM,
        "deepseek": DeepseekV3ForCausalLM,
    }  # fmt: skip
    model: PreTrainedModel = kinds[layout](config_of(layout)).eval()
    return model


def batches(*sizes: int, tokens: int = 7) -> list[dict[str, torch.Tensor]]:
    """Batches of random tokens, all of which are labels too."""
    source, made = torch.Generator().manual_seed(1), []
    for size in sizes:
        ids = torch.randint(4, 32, (size, tokens), generator=source)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()})
    return made
