"""What commands load: seen in `sys.modules` of a fresh process, whatever the machine's speed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import bases, trained

__all__ = ["bases", "trained"]

SLOW = (
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "matplotlib",
    "trl",
    "sklearn",
    "scipy",
    "pandas",
    "bitsandbytes",
)


def loaded_by(*commands: tuple[object, ...], code: int = 0) -> set[str]:
    """Packages that are there after commands in one process, each of which ends with this exit code."""
    run = f"""
import sys
from lorank.cli import app
for command in {[[str(argument) for argument in command] for command in commands]!r}:
    sys.argv = ["lorank", *command]
    try:
        app()
    except SystemExit as ended:
        assert (ended.code or 0) == {code}, (command, ended.code)
print("LOADED", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_verify_and_export_wait_for_torch_alone(trained: Callable[[str], Path], tmp_path: Path) -> None:
    """Importing torch takes most of the time of these commands, so they share a process."""
    exports = [
        ("export", trained("decoder"), tmp_path / form, "--for", form) for form in ("any", "vllm", "llama.cpp", "peft")
    ]
    verified = [("verify", trained(name)) for name in ("encoder", "decoder", "encoder-decoder")]
    against = ("verify", tmp_path / "vllm", "--against", trained("decoder"), "--engine", "vllm")
    loaded = loaded_by(*exports, *verified, against)
    assert "torch" in loaded
    assert not loaded & set(SLOW)
    assert len(list(tmp_path.glob("*/adapter_model.safetensors"))) == 4


@pytest.mark.long
def test_a_base_model_that_has_to_be_built_is_built(bases: Any, trained: Any, tmp_path: Path) -> None:
    """Without weights beside its config, names and shapes are not confirmed."""
    (tmp_path / "config.json").write_bytes((bases["decoder"] / "config.json").read_bytes())
    assert "transformers" in loaded_by(("verify", trained("decoder"), "--base", tmp_path))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("verify", "--help"), 0),
        (("verify", "nowhere", "--engine", "vlm"), 1),
        (("export", "nowhere", "served", "--for", "vlm"), 1),
        (("export", "nowhere", "served", "--dtype", "fp8"), 1),
        (("merge", "nowhere", "merged", "--dtype", "fp8"), 1),
    ],
)
def test_help_and_typing_errors_wait_for_nothing(arguments: tuple[str, ...], code: int) -> None:
    assert not loaded_by(arguments, code=code) & {*SLOW, "torch", "numpy", "safetensors"}


def test_the_library_loads_verify_and_export_without_transformers() -> None:
    code = "import sys, lorank; lorank.verify, lorank.export; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(SLOW)
