"""Tiny models of several architectures, as folders with a config alone or with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2VLConfig,
    T5Config,
    WhisperConfig,
    set_seed,
)

_SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**_SIZES, **_QUIET, vocab_size=96),
    "llama": lambda: LlamaConfig(**_SIZES, vocab_size=96, num_key_value_heads=2, pad_token_id=0),
    "mixtral": lambda: MixtralConfig(**_SIZES, vocab_size=96, num_key_value_heads=2, num_local_experts=4),
    "t5": lambda: T5Config(
        d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=96, dropout_rate=0.0, decoder_start_token_id=0
    ),
    "whisper": lambda: WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, dropout=0.0,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=96, max_source_positions=50, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    ),
    "qwen2-vl": lambda: Qwen2VLConfig(
        text_config={
            **_SIZES, "vocab_size": 96, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 64},
    ),
}  # fmt: skip


@pytest.fixture
def config_folder(tmp_path: Path) -> Callable[[str], str]:
    """Name of an architecture -> a folder with its config and nothing else."""

    def make(kind: str) -> str:
        CONFIGS[kind]().save_pretrained(tmp_path / kind)
        return str(tmp_path / kind)

    return make


def real_model(folder: str, meta: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights for a model of `load_without_weights`, saved and loaded in a dtype by its own class."""
    set_seed(0)
    kind: Any = type(meta)
    kind(kind.config_class.from_pretrained(folder)).save_pretrained(folder)
    return kind.from_pretrained(folder, dtype=dtype)
