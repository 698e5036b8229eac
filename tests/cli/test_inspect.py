"""`lorank inspect`: what it says, what it refuses, and how long it takes."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.memory.conftest import CONFIGS
from transformers import LlamaConfig, PreTrainedConfig, Qwen3MoeConfig
from typer.testing import CliRunner, Result

from lorank.cli import app

UNITS = ("bytes", "percent", "count", "tokens", "examples", "steps", "units")


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_inspect_needs_a_config_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    result = lorank("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    for expected in ("BertForSequenceClassification", "query", "attention.output", "48", "r=8", "448"):
        assert expected in result.output
    size = int(re.search(r"([\d,]+) parameters, heads and poolers not counted", result.output)[1].replace(",", ""))
    assert f"a budget of 1% is {size // 100:,}\n" in result.output
    for select in (".*query", "query", "query,attention.self.query"):
        shown = lorank("inspect", str(tmp_path), "--targets", select)
        assert (shown.exit_code, shown.output.count("query")) == (0, 1), select
    shown = lorank("inspect", str(tmp_path), "--exclude-modules", "query,key")
    assert (shown.exit_code, shown.output.count("query"), shown.output.count("value")) == (0, 0, 1)
    assert lorank("inspect", str(tmp_path / "nothing")).exit_code == 1


def saved(config: PreTrainedConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


def with_numbers(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Keys of every number, those around them first."""
    if isinstance(content, dict):
        return [found for key, value in content.items() for found in with_numbers(value, (*path, key))]
    return [path] if isinstance(content, (int, float)) and not isinstance(content, bool) else []


def test_every_number_has_its_unit_in_its_key(tmp_path: Path) -> None:
    folder = saved(CONFIGS["llama"](), tmp_path / "llama")
    options = ("--budget", "r=2", "--method", "igu-lora", "--batch", 2, "--seq", 16, "--quantization", "4bit")
    shown = lorank("inspect", folder, *options, "--json", tmp_path / "found.json")
    assert shown.exit_code == 0, shown.output
    for expected in ("LlamaForCausalLM", "adapted linear layers", "optimizer state", "of the same budget", "as asked"):
        assert expected in shown.output
    written = json.loads((tmp_path / "found.json").read_text())
    assert not [keys for keys in with_numbers(written) if not keys[-1].endswith(UNITS)]
    printed = lorank("inspect", folder, *options, "--json", "-")
    assert json.loads(printed.stdout) == written
    assert sum(one["parameters_count"] for one in written["parameters_by_kind"].values()) == 123_328
    assert written["peak_on_device_bytes"] == (
        written["base_on_device_bytes"] + written["initial_adapter_bytes"] + written["gradient_bytes"]
        + written["optimizer_state_bytes"] + written["score_state_bytes"] + written["activation_bytes"]
        + written["scoring_moment_bytes"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "BertForSequenceClassification"),
        ("llama", "LlamaForCausalLM"),
        ("mixtral", "MixtralForCausalLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("whisper", "WhisperForConditionalGeneration"),
        ("qwen2-vl", "Qwen2VLForConditionalGeneration"),
    ],
)
def test_the_class_is_the_one_that_is_trained(kind: str, name: str, tmp_path: Path) -> None:
    folder = saved(CONFIGS[kind](), tmp_path)
    assert f": {name}," in lorank("inspect", folder).output
    found = json.loads(lorank("inspect", folder, "--budget", "r=2", "--seq", 16, "--json", "-").stdout)
    assert (found["model_class"], found["activations_traced"]) == (name, True)
    kinds = found["parameters_by_kind"]
    assert ("experts" in kinds, "vision towers" in kinds) == (kind == "mixtral", kind == "qwen2-vl")


def test_a_task_that_is_given_decides_the_class(tmp_path: Path) -> None:
    folder = saved(CONFIGS["llama"](), tmp_path)
    assert "LlamaForSequenceClassification" in lorank("inspect", folder, "--task", "classification").output
    refused = lorank("inspect", folder, "--task", "seq2seq")
    assert (refused.exit_code, "no sequence-to-sequence class" in refused.output) == (1, True)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = (
        "--budget",
        "much",
        "--method",
        "igu",
        "--dtype",
        "int3",
        "--batch",
        0,
        "--shard",
        "fsdp",
        "--task",
        "dance",
    )
    refused = lorank("inspect", "no/model", *wrong)
    assert refused.exit_code == 1
    for expected in ("6 things", "budget 'much'", "method 'igu'", "dtype", "batch", "gpus is 1", "task 'dance'"):
        assert expected in refused.output, refused.output
    assert "give --budget too" in lorank("inspect", "no/model", "--method", "lora").output


def test_sharding_and_checkpointing_take_less(tmp_path: Path) -> None:
    folder = saved(CONFIGS["llama"](), tmp_path)

    def peak(*options: Any) -> dict[str, Any]:
        asked = ("--budget", "r=2", "--batch", 2, "--seq", 64, "--method", "igu-lora", "--json", "-")
        found: dict[str, Any] = json.loads(lorank("inspect", folder, *asked, *options).stdout)
        return found

    plain, sharded, checkpointed = peak(), peak("--gpus", 4, "--shard", "zero3"), peak("--gradient-checkpointing")
    assert sharded["base_on_device_bytes"] < plain["base_on_device_bytes"]
    assert any("DDP" in note for note in sharded["notes"])
    four, shared = peak("--quantization", "4bit"), peak("--quantization", "4bit", "--gpus", 4, "--shard", "fsdp")
    whole, apart = four["base_on_device_bytes"], four["quantisation_overhead_bytes"]
    assert shared["base_on_device_bytes"] == -(-(whole - apart) // 4) + apart + shared["gathered_bytes"]
    assert (shared["loading_peak_on_device_bytes"], four["loading_peak_on_device_bytes"]) == (whole, 0)
    assert any("loads the whole quantised base" in note for note in shared["notes"])
    eight = lorank("inspect", folder, "--budget", "r=2", "--quantization", "8bit", "--gpus", 4, "--shard", "fsdp")
    assert eight.exit_code == 1
    assert "fsdp cannot spread a base in 8 bits" in eight.output
    # With it PEFT gives the first block inputs with gradients, so that block saves a little more.
    assert checkpointed["activation_bytes"] == pytest.approx(plain["activation_with_checkpointing_bytes"], rel=0.02)
    assert checkpointed["activation_bytes"] < plain["activation_bytes"]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
            vocab_size=128256, dtype="bfloat16",
        ),
        Qwen3MoeConfig(
            hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, num_experts=128,
            num_experts_per_tok=8, moe_intermediate_size=1536, vocab_size=151936, dtype="bfloat16",
        ),
    ],
    ids=["70B", "128 experts"],
)  # fmt: skip
def test_hundreds_of_billions_of_parameters_take_seconds(config: PreTrainedConfig, tmp_path: Path) -> None:
    folder = saved(config, tmp_path)
    lorank("inspect", saved(CONFIGS["llama"](), tmp_path / "tiny"), "--budget", "r=2", "--seq", 16)  # start-up
    began = time.process_time()
    found = json.loads(lorank("inspect", folder, "--budget", "20M", "--method", "igu-lora", "--json", "-").stdout)
    seconds = time.process_time() - began
    assert found["activations_traced"]
    assert seconds < 5, seconds  # of the processor: other work on the machine does not count
