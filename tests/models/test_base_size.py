import copy

import pytest
import torch
import transformers as T
from peft import LoraConfig, get_peft_model
from tests.conftest import tiny_config
from torch import nn

import lorank
from lorank.models.base_size import base_parameters
from lorank.models.loading import load_without_weights

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
LLAMA = T.LlamaConfig(**SIZES)
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
FAMILIES = {
    "llama": (LLAMA, ("LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel")),
    "qwen2, tied": (
        T.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
        ("Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2Model"),
    ),
    "bert, with and without a pooler": (
        T.BertConfig(**SIZES),
        ("BertForSequenceClassification", "BertForMaskedLM", "BertForTokenClassification", "BertModel"),
    ),
    "t5, tied": (T.T5Config(**T5), ("T5ForConditionalGeneration", "T5ForSequenceClassification", "T5Model")),
    "t5, two embeddings": (
        T.T5Config(**T5, tie_word_embeddings=False),
        ("T5ForConditionalGeneration", "T5ForSequenceClassification", "T5Model"),
    ),
    "bart": (
        T.BartConfig(**BART, vocab_size=64, encoder_ffn_dim=32, decoder_ffn_dim=32),
        ("BartForConditionalGeneration", "BartForSequenceClassification", "BartModel"),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_of_an_architecture_has_the_same_base(family: str) -> None:
    config, classes = FAMILIES[family]
    sizes = set()
    for name in classes:
        sizes.add(base_parameters(getattr(T, name)(copy.deepcopy(config))))
        with torch.device("meta"):
            sizes.add(base_parameters(getattr(T, name)(copy.deepcopy(config))))
    assert len(sizes) == 1


def test_the_base_is_counted_by_hand() -> None:
    # Embeddings, two layers of q, k, v, o, gate, up, down and two norms each, and the last norm; no lm_head.
    assert base_parameters(T.LlamaForCausalLM(LLAMA)) == 64 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert base_parameters(plain) == sum(p.numel() for p in plain.parameters())


def test_adapters_heads_and_trained_tokens_are_not_part_of_it() -> None:
    size = base_parameters(T.LlamaForCausalLM(LLAMA))
    for options in (
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ):
        model = get_peft_model(T.LlamaForCausalLM(LLAMA), LoraConfig(**{"target_modules": ["q_proj"], **options}))
        assert base_parameters(model) == base_parameters(model.get_base_model()) == size, options
    classifier = get_peft_model(
        T.LlamaForSequenceClassification(LLAMA), LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    )
    assert base_parameters(classifier) == size


def test_wrappers_change_nothing() -> None:
    model = T.LlamaForCausalLM(LLAMA)
    size = base_parameters(model)
    assert base_parameters(nn.DataParallel(torch.compile(model))) == size
    model.model.layers[0] = torch.compile(model.model.layers[0])
    assert base_parameters(model) == size
    assert base_parameters(torch.compile(get_peft_model(T.LlamaForCausalLM(LLAMA), LoraConfig()))) == size


def test_packed_weights_count_as_what_they_stand_for() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")
    plain = T.LlamaForCausalLM(LLAMA)
    size = base_parameters(plain)
    for name, layer in list(plain.model.layers.named_modules()):
        if isinstance(layer, nn.Linear):
            packed = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False)
            packed.load_state_dict({"weight": layer.weight.detach()})
            plain.model.layers.set_submodule(name, packed.to("cpu"))
    if plain.model.layers[0].mlp.up_proj.weight.numel() == 16 * 32:
        pytest.skip("this bitsandbytes packs on an accelerator only")
    assert base_parameters(plain) == size


def test_one_percent_is_one_number(tmp_path) -> None:
    """In lorank.score, inspect and recipes (from the config), and RankAllocation (with adapters on)."""
    bert = T.BertForSequenceClassification(tiny_config())
    bert.save_pretrained(tmp_path)
    scored = lorank.score(bert, method="magnitude").provenance["base_parameters"]
    assert scored == base_parameters(load_without_weights(str(tmp_path)))
    adapted = get_peft_model(
        bert, LoraConfig(target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["classifier"])
    )
    allocation = lorank.RankAllocation("adalora", "2%")
    allocation.prepare(adapted)
    assert allocation._initial.provenance["base_parameters"] == scored
    assert allocation._initial.parameters == scored // 50
