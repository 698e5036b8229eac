"""Tokenizers of strangers end in bounded time and memory, and usual ones pass."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lorank.errors import RecipeError
from lorank.models.loading import load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.untrusted.tokenizer_files import check_tokenizer_folder

RULES: dict[str, tuple[dict[str, Any], str]] = {
    "tries every way": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "([a-z ]+[a-z ]+)+Y"}, "behavior": "Isolated", "invert": False}},
        "it cannot make tokens of a text .*retry-limit-in-match over",
    ),
    "long replacements": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 2_000_000}},
        r"it takes more than \d+ MB of memory for a text of",
    ),
    "replacements of replacements": (
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10}] * 9,
            }
        },
        r"it takes more than \d+ MB of memory for a text of",
    ),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "x" * 20_000_000}}, "it takes more than"),
    "many tokens at the ends": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 500 + [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
            }
        },
        "it adds 500 tokens to each text; allowed: 64",
    ),
}  # fmt: skip
SETTINGS: dict[str, tuple[Any, str]] = {
    "names": ({"model_input_names": "x"}, "model_input_names is 'x'; allowed: a list of names, input_ids among them"),
    "a name": ({"model_input_names": ["x"]}, r"model_input_names is \['x'\]"),
    "a long token": ({"pad_token": "x" * 5_000_000}, "its texts have 5,000,.* characters; at most 2,000,000"),
    "many tokens": ({"extra_special_tokens": [f"<{k}>" for k in range(200_000)]}, "it has 200,000 values in one place"),
    "made tokens": ({"extra_ids": 10**9}, "extra_ids is 1000000000; allowed: at most 10,000"),
    "a template": ({"chat_template": 5}, "chat_template is 5; allowed: a text, or several"),
    "templates": ({"chat_template": [{"name": "x"}]}, "chat_template is .*; allowed: a text, or several"),
    "a long template": ({"chat_template": {"default": "x" * 2_000_000}}, "chat_template has 2,000,000 characters"),
    "a list": ([1], r"it is \[1\], and not keys and values"),
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(path: Path, changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes if isinstance(changes, dict) else changes))


def refused(folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(RecipeError, match="is refused: tokenizer") as found:
        load_tokenizer(Pretrained(str(folder)))
    assert time.monotonic() - began < 20
    assert len(str(found.value)) < 700
    return str(found.value)


@pytest.mark.parametrize("kind", RULES)
def test_rules_that_take_too_much_are_refused(kind: str, folder: Path) -> None:
    changes, said = RULES[kind]
    change(folder / "tokenizer.json", changes)
    with pytest.raises(ValueError, match=said):
        check_tokenizer_folder(folder)
    assert "tokenizer.json: it " in refused(folder)


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_no_tokenizer_has_are_refused(kind: str, folder: Path) -> None:
    changes, said = SETTINGS[kind]
    change(folder / "tokenizer_config.json", changes)
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {said}"):
        check_tokenizer_folder(folder)
    assert "tokenizer_config.json: " in refused(folder)


def test_usual_ones_pass_and_what_cannot_be_loaded_is_left_to_the_loader(folder: Path) -> None:
    check_tokenizer_folder(folder)
    (folder / "tokenizer.json").write_text('"x"')
    check_tokenizer_folder(folder)
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_tokenizer(Pretrained(str(folder)))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    check_tokenizer_folder(folder)


def test_many_added_tokens_are_usual(folder: Path) -> None:
    """Models of speech have 65,536 and more."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    first = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    tokens = [{"content": f"<|speech_{number}|>", **flags} for number in range(66_000)]
    change(
        folder / "tokenizer_config.json",
        {"added_tokens_decoder": {str(first + k): one for k, one in enumerate(tokens)}},
    )
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    change(
        folder / "tokenizer.json", {"added_tokens": added + [{"id": first + k, **one} for k, one in enumerate(tokens)]}
    )
    check_tokenizer_folder(folder)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "added_tokens.json").write_text("")
    with pytest.raises(ValueError, match=r"added_tokens.json cannot be read \(Expecting value"):
        check_tokenizer_folder(folder)


def test_one_of_the_hub_is_looked_for_in_the_cache(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "home" / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    change(folder / "tokenizer.json", RULES["a long beginning"][0])
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    program = """
from lorank.models.loading import load_tokenizer
from lorank.models.pretrained import Pretrained
load_tokenizer(Pretrained("some/model"))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert (
        "RecipeError: model: the tokenizer of 'some/model' is refused: tokenizer.json: it takes more than"
        in ended.stderr
    )
