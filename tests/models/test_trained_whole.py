"""Modules that train whole: which ones a name means, weights that are tied, copies in fp32."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import tiny_config
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from lorank.errors import RecipeError
from lorank.models.trained_whole import train_copies_in_fp32, trained_whole


def llama(*, tied: bool = False) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, tie_word_embeddings=tied, **sizes))


def test_names_and_ends_are_found_and_counted() -> None:
    found = trained_whole(llama(), ["embed_tokens", "layers.1.input_layernorm", "lm_head"])
    assert found.names == ("model.embed_tokens", "model.layers.1.input_layernorm", "lm_head")
    assert (found.parameters, found.tied, found.options) == (2 * 32 * 16 + 16, False, {})
    assert trained_whole(llama(), None) == trained_whole(llama(), ()) == trained_whole(llama(), [])
    bert = BertForSequenceClassification(tiny_config())
    assert trained_whole(bert, ["pooler", "classifier"], ["classifier"]).names == (
        "bert.pooler",
    )  # a head is there already


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["lm_head", "model.embed_tokens"]])
def test_a_shared_weight_trains_as_one(names: list[str]) -> None:
    with torch.device("meta"):
        found = trained_whole(llama(tied=True), names)
    assert (found.names, found.tied, found.parameters) == (("model.embed_tokens",), True, 32 * 16)
    config = LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=list(found.names), **found.options)
    model = get_peft_model(llama(tied=True).to(torch.bfloat16), config)
    train_copies_in_fp32(model)
    inside: Any = model.get_base_model()
    table, output = (one.modules_to_save["default"] for one in (inside.model.embed_tokens, inside.lm_head))
    assert table.weight is output.weight
    assert table.weight.dtype == torch.float32
    assert inside.model.embed_tokens.original_module.weight.dtype == torch.bfloat16  # the base is as small as it was
    ids = torch.arange(8)[None]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert float(table.weight.grad.abs().max()) > 0
    assert model(input_ids=ids).logits.dtype == torch.bfloat16


def test_a_whole_block_that_returns_what_it_was_given_trains_in_fp32() -> None:
    found = trained_whole(llama(), ["layers.0.self_attn", "layers.0.mlp"])
    config = LoraConfig(r=1, target_modules=["model.layers.1.self_attn.q_proj"], modules_to_save=list(found.names))
    model = get_peft_model(llama().to(torch.bfloat16), config)
    train_copies_in_fp32(model)
    ids = torch.arange(8)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    trained = [p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["embed_token"], r"'embed_token' is no module of LlamaForCausalLM \(did you mean embed_tokens\?\)"),
        (["tokens"], "'tokens' is no module"),
        (["act_fn"], "'model.layers.0.mlp.act_fn' has no parameters"),
        (["model.layers.0", "layers.0.mlp"], r"'model\.layers\.0' has 'model\.layers\.0\.mlp' in it"),
    ],
)
def test_what_cannot_be_is_refused(names: list[str], said: str) -> None:
    with torch.device("meta"), pytest.raises(RecipeError, match=said):
        trained_whole(llama(), names)


def test_a_table_that_several_embeddings_share_is_refused() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    with torch.device("meta"):
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=32, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
        )
    with pytest.raises(RecipeError, match=r"shares a weight with .*, which PEFT cannot keep tied"):
        trained_whole(model, ["shared"])
