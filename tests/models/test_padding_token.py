"""A text has the same logits alone as in a padded batch: tokenizer and model pad with one token, on the right side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TaskType
from tests.conftest import save_tiny, tiny_writer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BloomConfig,
    DebertaV2Config,
    FNetConfig,
    FunnelConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    OPTConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
    set_seed,
)

from lorank.errors import RecipeError
from lorank.models.loading import load_task_model, load_tokenizer, load_without_weights
from lorank.models.padding_token import set_pad_id, set_padding, takes_mask
from lorank.models.pretrained import Pretrained

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
READS = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip
FAMILIES = {
    # config.pad_token_id agrees with the tokenizer (0), differs from it, or is not there.
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=40),
    "mpnet": MPNetConfig(**SIZES),
    "deberta": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "gpt2": GPT2Config(**GPT),
    "gpt2 with another pad id": GPT2Config(**GPT, pad_token_id=7),
    "llama": LlamaConfig(**SIZES, pad_token_id=9),
    "opt": OPTConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, pad_token_id=1,
                     word_embed_proj_dim=16, max_position_embeddings=64),
    "bloom": BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2),
    "xlnet": XLNetConfig(vocab_size=32, d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=5),
    "bart": BartConfig(**READS, pad_token_id=1, eos_token_id=3, decoder_start_token_id=3),
    "t5": T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=3, pad_token_id=0,
                   decoder_start_token_id=0),
    "gemma 3, a config of parts": Gemma3Config(
        text_config={**SIZES, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 6},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_do_not_depend_on_padding(family: str, tiny_folder: Path) -> None:
    config: Any = FAMILIES[family]
    set_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.padding_side = "left"  # as some tokenizers are saved
    tokenizer.model_input_names = ["input_ids"]
    set_padding(tokenizer, config, family)
    set_pad_id(model, tokenizer.pad_token_id)
    # Texts that have, and end with, the padding token and those that configs name.
    texts = [
        "the day was",
        "warm [PAD] fine",
        "the [PAD] [CLS] [UNK] house kind bright",
        "rather dull and cold and very grim",
    ]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer([text], return_tensors="pt")).logits for text in texts])
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("config_pad", "tokenizer_pad", "used"),
    [(None, None, 3), (1, None, 1), (1, "[PAD]", 0), (99, None, 3), (-1, None, 3)],
)
def test_a_loaded_decoder_pads_as_its_tokenizer(
    config_pad: int | None, tokenizer_pad: str | None, used: int, tiny_folder: Path, tmp_path: Path
) -> None:
    set_seed(0)
    config = LlamaConfig(**SIZES, initializer_range=0.3)
    save_tiny(LlamaModel(config), tiny_folder, tmp_path, eos_token="[SEP]")
    config.pad_token_id = config_pad
    config.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = tokenizer_pad
    tokenizer.save_pretrained(tmp_path)
    if config_pad == 99:
        with pytest.raises(RecipeError, match="cannot be loaded: Padding_idx must be within num_embeddings"):
            load_without_weights(str(tmp_path))
        return
    base = Pretrained(str(tmp_path))
    loaded, model = load_tokenizer(base), load_task_model(base, TaskType.SEQ_CLS, ("no", "yes")).model
    assert (loaded.pad_token_id, model.config.pad_token_id) == (used, used)


def test_a_model_that_writes_fills_up_with_the_tokenizers_padding(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_writer("encoder-decoder", tiny_folder, tmp_path)  # its generation config says 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "[UNK]"
    tokenizer.save_pretrained(folder)
    model: Any = load_task_model(Pretrained(str(folder)), TaskType.SEQ_2_SEQ_LM, ()).model
    pads = (model.config.pad_token_id, model.get_encoder().config.pad_token_id, model.generation_config.pad_token_id)
    assert pads == (1, 1, 1)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = None
    with pytest.raises(RecipeError, match="no padding token and no end token"):
        set_padding(tokenizer, GPT2Config(**GPT), "tiny")


def test_a_model_that_cannot_be_told_of_padding_is_known() -> None:
    assert not takes_mask(FNetConfig())
    assert takes_mask(FunnelConfig())
    assert all(takes_mask(config) for config in FAMILIES.values())
