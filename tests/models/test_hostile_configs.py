"""Folders of models that no model can be built from: refused with the reason, before anything is built or loaded."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from peft import TaskType

from lorank.errors import RecipeError
from lorank.models.loading import load_task_model, load_tokenizer, load_without_weights, without_weights
from lorank.models.pretrained import Pretrained

BASE = "model.safetensors"
GONE = object()


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(folder: Path) -> str:
    began = time.process_time()
    with pytest.raises(RecipeError, match="cannot be loaded") as found:
        without_weights(Pretrained(str(folder)), TaskType.SEQ_CLS)
    assert time.process_time() - began < 5
    assert len(str(found.value)) < 700
    return str(found.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 0}, "hidden_size in its config is 0; allowed: 1 to"),
        ({"num_attention_heads": 3}, "is not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "num_attention_heads in its config is 0"),
        ({"hidden_act": "wobble"}, "KeyError: 'wobble'"),
        ({"dtype": "float1"}, "dtype in its config is 'float1'; allowed: float32, bfloat16"),
        ({"dtype": "nn"}, "dtype in its config is 'nn'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers in its config is -1; allowed: 0 to 1,000"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers in its config is 1000000000000"),
        ({"vocab_size": 10**30}, "vocab_size in its config is a number of about 31 digits"),
        ({"vocab_size": 10**9}, "describes 16,000,0"),
        ({"max_position_embeddings": 10**8}, "parameters, and its weights have"),
        ({"num_labels": 10**12}, "num_labels in its config"),
        ({"id2label": "\x1b[31m"}, r"id2label in its config is '\\x1b\[31m'; allowed: a mapping"),
        ({"id2label": {"9" * 5000: "a"}}, "4300 digits"),
        ({"architectures": [1, None]}, "architectures in its config is .1, None.; allowed: a list of names"),
        ({"model_type": GONE}, "Should have a `model_type`"),
        ({"model_type": ["bert"]}, "model_type in its config"),
        ({"quantization_config": 3}, "quantization_config in its config is 3"),
        ({"to_dict": 1}, "to_dict in its config is no value"),
        ({"text_config": {"num_layers": 10**6}}, "num_layers in its config"),
    ],
)
def test_values_that_no_model_has(changes: dict[str, Any], said: str, folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not GONE}
    (folder / "config.json").write_text(json.dumps(content))
    assert re.search(said, refused(folder))


NESTED = f'{{"model_type": "bert", "x": {"[" * 900}1{"]" * 900}}}'


@pytest.mark.parametrize("text", ["[]", "null", "7", "", "[" * 100_000, NESTED])
def test_configs_that_are_none(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(folder)


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        ("../outside.safetensors", "names the file '../outside.safetensors', which is not in the folder"),
        ("/etc/hostname", "names the file '/etc/hostname', which is not in the folder"),
        ("gone.safetensors", "names the file 'gone.safetensors', which is missing"),
        (3, "names the file 3, which is not in the folder"),
    ],
)
def test_an_index_names_files_of_its_folder(placed: Any, said: str, folder: Path) -> None:
    shutil.copy(folder / BASE, folder.parent / "outside.safetensors")
    (folder / BASE).rename(folder / "part.safetensors")
    (folder / f"{BASE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": placed}}))
    assert said in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "[" * 100_000])
def test_a_damaged_index(text: str, folder: Path) -> None:
    (folder / f"{BASE}.index.json").write_text(text)
    assert "is damaged" in refused(folder)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, (2**40).to_bytes(8, "little") + b"{}"])
def test_damaged_weights_are_seen_before_any_work(damage: bytes, folder: Path) -> None:
    (folder / BASE).write_bytes(damage)
    assert "model.safetensors is damaged" in refused(folder)
    load_without_weights(str(folder))  # names and shapes need no weights


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "[]", "cannot be loaded"),
        ("tokenizer_config.json", "[]", r"is refused: tokenizer_config.json: it is \[\], and not keys and values"),
        ("tokenizer.json", "[" * 100_000, "cannot be loaded"),
    ],
)
def test_tokenizers_that_are_none(name: str, text: str, said: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_tokenizer(Pretrained(str(folder)))


def test_a_name_of_any_length_is_refused() -> None:
    for name in ("x" * 100_000, "a\0b", "\x1b[31m", "../" * 2000):
        with pytest.raises(RecipeError, match="cannot be loaded") as found:
            load_task_model(Pretrained(name), TaskType.SEQ_CLS, ("no", "yes"))
        assert "\x1b" not in str(found.value)
        assert len(str(found.value)) < 4_200
