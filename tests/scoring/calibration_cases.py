"""Tiny models of every kind, and ragged batches for them."""

import torch
from tests.conftest import tiny_config
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    set_seed,
)

from lorank.scoring.calibration import Quantity

QUANTITIES: tuple[Quantity, ...] = ("gram", "fisher", "kfac", "hutchinson", "gradient")
Batches = list[dict[str, torch.Tensor]]


def encoder() -> PreTrainedModel:
    return BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))


def decoder() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, initializer_range=0.3, **sizes))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    )


def encoder_decoder() -> PreTrainedModel:
    ends = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 1}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=32, d_model=16, max_position_embeddings=32, init_std=0.3, **ends, **heads)
    )


MODELS = {"encoder": encoder, "decoder": decoder, "gpt2": gpt2, "encoder-decoder": encoder_decoder}


def make(kind: str) -> PreTrainedModel:
    set_seed(0)
    return MODELS[kind]().double()


def example(kind: str, number: int) -> dict[str, list[int]]:
    """One example of random length; prompt tokens of a decoder carry no label."""
    source = torch.Generator().manual_seed(number)
    length = int(torch.randint(3, 12, (), generator=source))
    ids = torch.randint(5, 31, (length,), generator=source).tolist()
    if kind == "encoder":
        return {"input_ids": ids, "labels": [number % 2]}
    if kind == "encoder-decoder":
        return {"input_ids": ids, "labels": torch.randint(5, 31, (number % 4 + 2,), generator=source).tolist()}
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def collate(kind: str, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    ids = [one["input_ids"] for one in examples]
    labels = padded([one["labels"] for one in examples], -100)
    mask = padded([[1] * len(row) for row in ids], 0)
    return {
        "input_ids": padded(ids, 1),
        "attention_mask": mask,
        "labels": labels[:, 0] if kind == "encoder" else labels,
    }


def batches_of(kind: str, count: int, size: int) -> Batches:
    rows = [example(kind, number) for number in range(count)]
    return [collate(kind, rows[start : start + size]) for start in range(0, count, size)]
