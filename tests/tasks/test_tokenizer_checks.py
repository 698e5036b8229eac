"""Tokens that the model cannot read are found before its weights are loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import TaskType
from tests.conftest import save_tiny, tiny_config, tiny_writer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertModel,
    CanineConfig,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
)

from lorank.errors import LorankWarning, RecipeError
from lorank.models.loading import load_tokenizer, load_without_weights
from lorank.models.pretrained import Pretrained
from lorank.tasks.data import load_task_data
from lorank.tasks.tokenizer_checks import _head_reads, check_tokens, embeddings_of

GPT = {"vocab_size": 21, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
BART = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
}  # fmt: skip


@pytest.fixture
def checked(tiny_recipe: Any, tmp_path: Path) -> Callable[..., None]:
    """Check a model's folder with texts that end with `extra` in one test example."""

    def check(folder: Path, extra: str = "", text: str = "the day was warm") -> None:
        for part in ("train", "test"):
            rows = [f"{text}{extra if part == 'test' and k == 3 else ''}\t{k % 2}" for k in range(6)]
            (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]))
        files = {part: str(tmp_path / f"{part}.tsv") for part in ("train", "test")}
        recipe = tiny_recipe(model=str(folder), data={**files, "max_length": 32})
        base, section = Pretrained(str(folder)), recipe.data
        model = load_without_weights(base.name, task_type=TaskType.SEQ_CLS)
        check_tokens(load_task_data(section), load_tokenizer(base), section, TaskType.SEQ_CLS, base, model)

    return check


def add_tokens(folder: Path, **special: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["later"])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def test_a_padding_token_without_an_embedding(checked: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_tiny(GPT2Model(GPT2Config(**GPT)), tiny_folder, tmp_path / "gpt", eos_token="[SEP]")
    checked(folder)
    add_tokens(folder)  # a token more than embeddings, which no text has
    checked(folder)
    with pytest.raises(RecipeError, match=r"test example 3 has token 'later', number 21, but .* 21 tokens"):
        checked(folder, " later")
    add_tokens(folder, pad_token="[PAD2]")
    with pytest.raises(
        RecipeError, match=r"pads with '\[PAD2\]', token 22, but the model has embeddings for 21 tokens"
    ):
        checked(folder)
    with pytest.raises(
        RecipeError, match=r"2 things have to be mended:\n- model: the tokenizer.*\n- model: test example"
    ):
        checked(folder, " later")


def test_a_number_beyond_the_embeddings_among_few_tokens(checked: Any, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, folder := tmp_path / "gap")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["warm"] = 31_000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"train example 0 has token 'warm', number 31000, but .* 32 tokens"):
        checked(folder)


def test_a_token_at_the_ends_of_a_text_beyond_the_embeddings(checked: Any, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, folder := tmp_path / "ends")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [4_000_000_000]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"train example 0 has token None, number 4000000000, but .* 32 tokens"):
        checked(folder)


def test_answers_are_read_too(tiny_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_writer("decoder", tiny_folder, tmp_path / "writer")
    LlamaConfig(
        vocab_size=21, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    ).save_pretrained(folder)
    add_tokens(folder)
    for answer, fails in (("warm", False), ("later", True)):
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"document": "the day", "summary": "fine {answer}"}}\n' * 2)
        files = {"train": str(path), "test": str(path), "task": "summarization", "max_target_length": 8}
        recipe = tiny_recipe(model=str(folder), data=files, method="lora")
        base, section = Pretrained(str(folder)), recipe.data
        data, tokenizer = load_task_data(section), load_tokenizer(base)
        arguments: Any = (data, tokenizer, section, TaskType.CAUSAL_LM, base, load_without_weights(base.name))
        if fails:
            with pytest.raises(RecipeError, match="train example 0 has token 'later'"):
                check_tokens(*arguments)
        else:
            check_tokens(*arguments)


def test_a_head_that_reads_at_the_end_token_needs_one_in_every_text(
    checked: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = save_tiny(BartModel(BartConfig(**BART)), tiny_folder, tmp_path / "bart", eos_token="[SEP]")
    checked(folder)  # the tokenizer adds one
    with pytest.raises(
        RecipeError, match=r"its end token \('\[SEP\]'\), but test example 3 has 2 of them where others have 1"
    ):
        checked(folder, " [SEP] fine")
    BartConfig(**{**BART, "eos_token_id": 4}).save_pretrained(folder)
    with pytest.raises(RecipeError, match="train example 0 has 0 of them where one is needed"):
        checked(folder)
    BartConfig(**{**BART, "eos_token_id": 0}).save_pretrained(folder)
    with pytest.raises(RecipeError, match="its tokenizer pads with the same token"):
        checked(folder)


def test_which_heads_read_at_an_end_or_padding_token() -> None:
    def reads(config: Any, key: str) -> bool:
        return _head_reads(AutoModelForSequenceClassification.from_config(config), key)

    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    llama = LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    assert [reads(config, "eos_token_id") for config in (t5, BartConfig(**BART), llama, GPT2Config(**GPT), tiny_config())] == [
        True, True, False, False, False
    ]  # fmt: skip
    assert [reads(config, "pad_token_id") for config in (llama, GPT2Config(**GPT), tiny_config())] == [
        True,
        True,
        False,
    ]


def test_a_text_without_tokens_is_named(checked: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_tiny(LlamaModel(LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )), tiny_folder, tmp_path / "llama")  # fmt: skip
    checked(folder, text=" ")  # [CLS] and [SEP] are tokens
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(RecipeError, match=r"train example 0 is ' ', in which the tokenizer .* finds no token"):
        checked(folder, text=" ")


def test_a_model_that_pads_otherwise_than_its_config_says_so(checked: Any, tiny_folder: Path, tmp_path: Path) -> None:
    config = GPT2Config(**GPT, pad_token_id=7)
    folder = save_tiny(GPT2Model(config), tiny_folder, tmp_path / "gpt")
    with pytest.warns(LorankWarning, match=r"says pad_token_id 7, its tokenizer pads with 0; 0 is trained with"):
        checked(folder)
    fnet = FNetModel(FNetConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, intermediate_size=32))
    with pytest.warns(LorankWarning, match="fnet has no attention mask"):
        checked(save_tiny(fnet, tiny_folder, tmp_path / "fnet"))


def test_tables_of_embeddings(tiny_folder: Path) -> None:
    assert embeddings_of(BertModel(tiny_config())) == 32
    canine = AutoModelForSequenceClassification.from_config(
        CanineConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_hash_buckets=64
        )
    )
    assert embeddings_of(canine) is None
