"""Runs with tokens that are added: embeddings grow, their rows train, and the adapter is loaded with what its card says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lorank.errors import AdapterError, RecipeError, TargetError
from lorank.models.adapted_model import load_adapted
from lorank.runs.prepare import prepare
from lorank.runs.prune_adapter import prune_adapter
from lorank.runs.run import run
from lorank.serving.export import export
from lorank.serving.merge import merge

QUIET = Console(quiet=True)
TOKENS = tuple(f"<|{number}|>" for number in range(13))  # the tokenizer has 21 of its own, the base 32 rows
IDS = torch.tensor([[5, 32, 7, 33, 9]])


@pytest.fixture
def recipe(recipe_on: Any, tmp_path: Path) -> Any:
    """A recipe whose data has the new tokens."""

    def make(method: str, model: dict[str, Any], **changes: Any) -> Any:
        rows = tmp_path / "tokens.jsonl"
        words = ("cold", "warm", "fine", "dull") * 8
        made = ({"instruction": "the", "input": f"<|11|> {word}", "output": f"<|12|> {word}"} for word in words)
        rows.write_text("\n".join(map(json.dumps, made)))
        data = {"train": str(rows), "test": str(rows), "task": "instruction", "max_length": 12, "max_target_length": 8}
        return recipe_on(method, {"new_tokens": list(TOKENS), **model}, data=data, **changes)

    return make


def as_the_card_says(adapter: Path) -> Any:
    """The model that the lines of the card load, with the folder of the adapter where they have its title."""
    card = (adapter / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0].replace('"out"', repr(str(adapter)))
    found: dict[str, Any] = {"BitsAndBytesConfig": BitsAndBytesConfig}
    exec(lines, found)
    return found["model"].eval()


def test_a_table_that_has_rows_to_spare_stays_as_it_is(recipe: Any) -> None:
    task = prepare(recipe("lora", {"new_tokens": TOKENS[:2]}), ("lora",))[1].load_model()
    assert task.token_rows == {"model.embed_tokens": [21, 22], "lm_head": [21, 22]}
    assert task.model.get_input_embeddings().num_embeddings == 32  # type: ignore[union-attr]
    whole = prepare(recipe("lora", {"modules_to_save": ["lm_head"]}), ("lora",))[1].load_model()
    assert list(whole.token_rows) == ["model.embed_tokens"]  # the rows of the other train with all of it


@pytest.mark.parametrize(
    ("method", "model", "tied"),
    [
        pytest.param("igu-lora", {}, False, marks=pytest.mark.long),
        ("i-lora", {"dtype": "fp32"}, True),
        pytest.param("sensitivity-lora", {"quantization": "4bit"}, False, marks=pytest.mark.long),
    ],
)
def test_new_rows_train_and_the_adapter_is_loaded_as_its_card_says(
    method: str, model: dict[str, Any], tied: bool, recipe: Any, tied_decoder: Path, tmp_path: Path
) -> None:
    if "quantization" in model:
        pytest.importorskip("bitsandbytes")
    made = recipe(method, {**model, **({"name": str(tied_decoder)} if tied else {})})
    with (tmp_path / "said").open("w") as file:
        result = run(made, tmp_path / "out", Console(file=file, width=300))
    assert "model.new_tokens: 13 tokens are added, 34 in all" in (tmp_path / "said").read_text()
    adapter = tmp_path / "out" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    rows = {key: one for key, one in tensors.items() if ".lora_" not in key}
    assert [tuple(one.shape) for one in rows.values()] == [(13, 64)] * (1 if tied else 2)  # and no whole table
    assert {one.dtype for one in rows.values()} == {torch.float32}
    assert sum(one.numel() for key, one in tensors.items() if key not in rows) == result.plan.spent
    assert AutoTokenizer.from_pretrained(adapter).convert_tokens_to_ids(list(TOKENS)) == [*range(21, 34)]
    plain = as_the_card_says(adapter)
    logits = plain(IDS).logits
    assert logits.shape[-1] == 34
    if "quantization" not in model:
        ours = load_adapted(adapter, dtype=torch.float32 if model.get("dtype") == "fp32" else "auto")
        assert torch.equal(ours.eval()(IDS).logits, logits)
    with pytest.raises((IndexError, RuntimeError)):  # PEFT says what is missing where the base has no rows for them
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.model.name), str(adapter))


@pytest.mark.long
def test_a_run_that_lost_its_end_goes_on_to_the_same_adapter(recipe: Any, tmp_path: Path) -> None:
    made, out = recipe("igu-lora", {}), tmp_path / "out"
    run(made, out, QUIET)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    for name in ("plan.json", "scores.safetensors", "evaluation.json", "metrics.json"):
        (out / name).unlink()
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / "train" / "checkpoint-20")
    run(made, out, QUIET)
    again = load_file(out / "adapter" / "adapter_model.safetensors")
    assert again.keys() == adapter.keys()
    assert all(torch.equal(again[key], adapter[key]) for key in adapter)


def test_merging_carries_the_tokens_exporting_says_that_it_cannot_and_pruning_keeps_them(
    recipe: Any, tmp_path: Path
) -> None:
    made = recipe("lora", {"dtype": "fp32"}, budget="r=2")
    run(made, tmp_path / "out", QUIET)
    adapter = tmp_path / "out" / "adapter"
    wanted = as_the_card_says(adapter)(IDS).logits
    merge(adapter, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-4, rtol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 34
    with pytest.raises(AdapterError, match=r"trained tokens; only .* lorank merge"):
        export(adapter, tmp_path / "served")
    prune_adapter(adapter, "r=1", tmp_path / "small", made, console=QUIET)
    small = load_file(tmp_path / "small" / "adapter" / "adapter_model.safetensors")
    kept = {key: one for key, one in load_file(adapter / "adapter_model.safetensors").items() if ".lora_" not in key}
    assert all(torch.equal(small[key], one) for key, one in kept.items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "small" / "adapter")) == 34


def test_a_table_that_trains_whole_has_the_new_rows_in_it(recipe: Any, tmp_path: Path) -> None:
    made = recipe("lora", {"dtype": "fp32", "modules_to_save": ["embed_tokens", "lm_head"]})
    run(made, tmp_path / "out", QUIET)
    adapter = tmp_path / "out" / "adapter"
    assert load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"].shape == (34, 64)
    ours = load_adapted(adapter, dtype=torch.float32)
    assert torch.equal(ours.eval()(IDS).logits, as_the_card_says(adapter)(IDS).logits)
    with pytest.raises(AdapterError, match="the vocabulary was resized in training; save the resized base model"):
        export(adapter, tmp_path / "served")


@pytest.mark.parametrize(
    ("model", "changes", "error", "said"),
    [
        ({"new_tokens": ["[SEP]"]}, {}, RecipeError, r"new_tokens: '\[SEP\]' is a token of .* already"),
        ({"new_tokens": ["<a>", "<a>"]}, {}, RecipeError, "'<a>' is given twice"),
        ({"new_tokens": [" "]}, {}, RecipeError, "' ' is empty"),
        ({}, {"target_modules": ["lm_head", "q_proj"]}, TargetError, "'lm_head' is a target, and would train the rows"),
    ],
)
def test_what_cannot_be_is_refused(
    model: dict[str, Any], changes: dict[str, Any], error: type[Exception], said: str, recipe: Any
) -> None:
    with pytest.raises(error, match=said):
        prepare(recipe("lora", model, **changes), ("lora",))
