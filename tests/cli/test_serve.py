"""The commands that serve an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from typer.testing import CliRunner, Result

from lorank.cli import app
from lorank.serving import hub

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_export_says_what_it_made_and_what_is_lost(trained: Any, tmp_path: Path) -> None:
    result = lorank("export", trained("decoder"), tmp_path / "served", "--gguf")
    assert result.exit_code == 0, result.output
    for expected in (
        "right in            8 of 8 engines",
        "vLLM, from 0.32",
        "--enable-lora --max-lora-rank 8",
        "times the compact form's",
        "smallest --max-lora-rank of vLLM: 8",
        "padded units of rank have no gradient",
        str(tmp_path / "served"),
        "adapter.gguf",
    ):
        assert expected in result.output
    compact = lorank("export", trained("decoder"), tmp_path / "compact", "--for", "vllm")
    assert "as compact as can be" in compact.output
    assert "no gradient" not in compact.output


def test_verify_exits_with_1_where_an_engine_that_was_asked_for_would_be_wrong(
    trained: Any,
    tmp_path: Path,
) -> None:
    lorank("export", trained("decoder"), tmp_path / "served", "--for", "vllm")
    assert lorank("verify", tmp_path / "served").exit_code == 0
    asked = ("verify", tmp_path / "served", "--against", trained("decoder"))
    assert lorank(*asked, "--engine", "vllm", "--engine", "vllm-0.31").exit_code == 0
    wrong = lorank(*asked, "--engine", "vllm", "--engine", "sglang")
    assert wrong.exit_code == 1
    assert "rank_pattern has values other than r" in wrong.output
    unknown = lorank(*asked, "--engine", "sgland")
    assert (unknown.exit_code, "did you mean sglang?" in unknown.output) == (1, True)


def test_verify_says_that_the_base_model_was_not_looked_at(trained: Any, tmp_path: Path) -> None:
    lorank("export", trained("decoder"), tmp_path / "served")
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    (tmp_path / "served" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    result = lorank("verify", tmp_path / "served")
    assert result.exit_code == 0
    assert "base model not looked at: the base model 'gone' cannot be read: no such folder" in result.output
    assert result.output.count("unknown") == 4  # engines whose answer depends on it
    assert lorank("verify", tmp_path / "served", "--engine", "vllm").exit_code == 0
    asked = lorank("verify", tmp_path / "served", "--engine", "tgi")
    assert (asked.exit_code, "TGI, LoRAX: unknown" in asked.output) == (1, True)


@pytest.mark.parametrize("command", ["export", "verify", "merge"])
def test_broken_adapters_are_one_line_without_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    result = lorank(command, tmp_path / "adapter", *((tmp_path / "out",) if command != "verify" else ()))
    assert result.exit_code == 1
    assert "damaged or cut off" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_merge(trained: Any, tmp_path: Path) -> None:
    result = lorank("merge", trained("decoder"), tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_push_to_hub_asks_for_the_login_before_any_work(
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_recipe: Any,
) -> None:
    class NotLoggedIn:
        def whoami(self) -> None:
            raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(hub, "HfApi", NotLoggedIn)
    result = lorank("export", trained("decoder"), tmp_path / "served", "--push-to-hub", "me/adapter")
    assert (result.exit_code, "hf auth login" in result.output, (tmp_path / "served").exists()) == (1, True, False)
    content = tiny_recipe().model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    result = lorank("run", tmp_path / "recipe.yaml", "--output", tmp_path / "out", "--push-to-hub", "me/adapter")
    assert (result.exit_code, "hf auth login" in result.output, (tmp_path / "out").exists()) == (1, True, False)


def test_export_pushes_what_it_wrote(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(hub, "check_hub", lambda name: None)
    monkeypatch.setattr(hub, "push", lambda folder, name, private: pushed.append((folder, name, private)) or "address")
    result = lorank("export", trained("decoder"), tmp_path / "served", "--push-to-hub", "me/adapter", "--private")
    assert result.exit_code == 0, result.output
    assert pushed == [(tmp_path / "served", "me/adapter", True)]
    assert "address" in result.output
