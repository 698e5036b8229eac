"""A tiny decoder that is saved in bf16, and recipes on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import save_tiny
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe


def _saved(folder: Path, tiny_folder: Path, **options: Any) -> Path:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.1, pad_token_id=0, eos_token_id=3,
        **options,
    )  # fmt: skip
    return save_tiny(LlamaForCausalLM(config).to(torch.bfloat16), tiny_folder, folder, eos_token="[SEP]")


@pytest.fixture
def decoder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama that is saved in bf16, wide enough for blocks of 64 weights."""
    return _saved(tmp_path / "decoder", tiny_folder)


@pytest.fixture
def tied_decoder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The same, whose output layer shares the weight of the embedding."""
    return _saved(tmp_path / "tied", tiny_folder, tie_word_embeddings=True)


@pytest.fixture
def recipe_on(decoder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    rows = tmp_path / "rows.jsonl"
    words = ("cold", "warm", "fine", "dull") * 8
    made = ({"instruction": "was the day", "input": word, "output": f"the day was {word}"} for word in words)
    rows.write_text("\n".join(map(json.dumps, made)))

    def make(method: str, model: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "model": {"name": str(decoder), **(model or {})},
            "method": method, "budget": "r=1", "checkpoint_every": 8, "triplets": {"initial_rank": 2},
            "train": {"max_steps": 20 if method == "igu-lora" else 6, "batch_size": 8, "learning_rate": 1e-2},
            "data": {"train": str(rows), "test": str(rows), "task": "instruction", "max_length": 12, "max_target_length": 8},
        }  # fmt: skip
        if method == "i-lora":
            content |= {"measure": {"scoring_batch_size": 4}, "preset": "paper"}
        if method == "igu-lora":
            content |= {"measure": {"every": 1}}
        return make_recipe({**content, **changes})

    return make
