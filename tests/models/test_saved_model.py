"""What an adapter's folder says of its tokenizer: tokens that were added for it, whatever trains their rows."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, TaskType, get_peft_model
from tests.conftest import tiny_writer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lorank.errors import AdapterError
from lorank.models.loading import load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.models.saved_model import read_saved_model


@pytest.fixture
def decoder(tiny_folder: Path, tmp_path: Path) -> Path:
    return tiny_writer("decoder", tiny_folder, tmp_path / "decoder")


def adapter_with(tokenizer: PreTrainedTokenizerBase, decoder: Path, folder: Path, rows: list[int] | None) -> Path:
    base = AutoModelForCausalLM.from_pretrained(decoder)
    config = LoraConfig(
        r=1,
        target_modules=["q_proj"],
        task_type=TaskType.CAUSAL_LM,
        trainable_token_indices=rows and {"embed_tokens": rows},
    )
    get_peft_model(base, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rows", [None, [22]])
def test_all_tokens_of_the_tokenizer_beside_it_are_known(decoder: Path, tmp_path: Path, rows: list[int] | None) -> None:
    """Also where one row of two trains, or none."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    found = read_saved_model(str(adapter_with(tokenizer, decoder, tmp_path / "adapter", rows)), Pretrained(""))
    assert found.base.new_tokens == ("<|im_start|>", "<|im_end|>")
    text = "<|im_start|> fine <|im_end|>"
    assert load_tokenizer(found.base)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_of_another_model_is_refused(decoder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)

    folder = adapter_with(tokenizer, decoder, tmp_path / "adapter", None)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"fine"', '"good"'))
    with pytest.raises(AdapterError, match="numbers its 1 new tokens in another way"):
        read_saved_model(str(folder), Pretrained(""))


def test_a_tokenizer_that_takes_too_much_is_refused(decoder: Path, tmp_path: Path) -> None:
    folder = adapter_with(AutoTokenizer.from_pretrained(decoder), decoder, tmp_path / "adapter", None)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Prepend", "prepend": "x" * 20_000_000}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        AdapterError,
        match=r"tokenizer beside the adapter is refused: tokenizer.json: it takes more than .* MB of memory",
    ):
        read_saved_model(str(folder), Pretrained(""))
