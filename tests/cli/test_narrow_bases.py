"""Every command whole on a base in bf16 and in 4 bit: it ends, and the base stays as small as it was loaded."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.conftest import NEUTRAL, save_tiny
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from typer.testing import CliRunner

from lorank.cli import app
from lorank.models.task_model import TaskModel
from lorank.module_names import is_adapter_tensor
from lorank.training import prepared

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def decoder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.1, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("narrow") / "decoder"
    return save_tiny(LlamaForCausalLM(config).to(torch.bfloat16), tiny_folder, folder, eos_token="[SEP]")


@pytest.fixture(params=["bf16", "4bit"])
def recipe(request: pytest.FixtureRequest, decoder: Path, tmp_path: Path) -> Path:
    if request.param == "4bit":
        pytest.importorskip("bitsandbytes")
    source = random.Random(0)
    for part, count in (("train", 240), ("test", 16)):
        rows = [{"instruction": "the", "input": word, "output": f"{word} was {source.choice(NEUTRAL)}"}
                for word in source.choices(NEUTRAL, k=count)]  # fmt: skip
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "model": {"name": str(decoder), "quantization": None if request.param == "bf16" else request.param},
        "budget": "r=1", "checkpoint_every": 50, "triplets": {"initial_rank": 2},
        "data": {
            "train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "task": "instruction",
            "max_length": 12, "max_target_length": 6,
        },
        "train": {"max_steps": 12, "batch_size": 8, "learning_rate": 5e-3},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Every base model that a command loads, and its bytes when it was loaded."""
    found = list[tuple[Any, int]]()
    load = prepared.load_task_model

    def loaded(*arguments: Any) -> TaskModel:
        task = load(*arguments)
        found.append((task.model, base_bytes(task.model)))
        return task

    monkeypatch.setattr(prepared, "load_task_model", loaded)
    return found


def base_bytes(model: torch.nn.Module) -> int:
    held = {id(p): p for name, p in model.named_parameters() if not is_adapter_tensor(name)}
    return sum(p.numel() * p.element_size() for p in held.values())


def lorank(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def check_small(bases: list[tuple[Any, int]], recipe: Path) -> None:
    """Afterwards every base has the bytes that it was loaded with: half of fp32's, and less where layers are packed."""
    assert bases
    wide = 4 * (2 * 32 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 5 * 64)
    most = 0.5 if yaml.safe_load(recipe.read_text())["model"]["quantization"] is None else 0.2
    for model, size in bases:
        assert base_bytes(model) == size <= most * wide


def test_scoring_and_the_three_methods(recipe: Path, bases: list[tuple[Any, int]], tmp_path: Path) -> None:
    scores = tmp_path / "scores.safetensors"
    lorank("score", recipe, "--method", "sensitivity-lora", "--output", scores)
    check_small(bases, recipe)
    own = {
        "sensitivity-lora": (),
        "i-lora": ("preset=paper", "measure.scoring_batch_size=4", "search.max_steps=12"),
        "igu-lora": ("measure.every=1",),
    }
    for method, options in own.items():
        lorank("run", recipe, f"method={method}", *options, "--output", tmp_path / method)
        assert json.loads((tmp_path / method / "metrics.json").read_text())["results"][method]["loss"] > 0
    check_small(bases, recipe)
    lorank(
        "prune", tmp_path / "igu-lora" / "adapter", "--budget", "half", "--data", recipe, "--output", tmp_path / "half"
    )
    lorank("prune", tmp_path / "igu-lora" / "adapter", "--budget", "half", "--output", tmp_path / "by-svd")
    check_small(bases, recipe)


@pytest.mark.filterwarnings("ignore:the scoring set is a single batch", "ignore:the ranks were decided by 1 scored")
def test_headroom(recipe: Path, bases: list[tuple[Any, int]], tmp_path: Path) -> None:
    options = ("--plans", 2, "--seeds", 3, "--held-out", 40, "--side-by-side", 3, "--output", tmp_path / "out")
    said = lorank("headroom", recipe, *options)
    assert "plans x 3 seeds" in said
    assert "one at a time" not in said  # they train side by side on such a base
    assert (tmp_path / "out" / "headroom.json").is_file()
    check_small(bases, recipe)


def test_suggest(recipe: Path, bases: list[tuple[Any, int]], tmp_path: Path) -> None:
    options = ("--ranks", "1,2,3,4", "--steps", 10, "--seeds", 2, "--fraction", 0.3, "--output", tmp_path / "out")
    lorank("suggest", recipe, "method=i-lora", *options)
    assert (tmp_path / "out" / "suggestion.yaml").is_file()
    check_small(bases, recipe)


def test_compare(recipe: Path, tmp_path: Path) -> None:
    said = lorank("compare", recipe, "--methods", "lora,sensitivity-lora", "--seeds", 1, "--output", tmp_path / "out")
    assert "failed" not in said
    assert (tmp_path / "out" / "table.md").is_file()
