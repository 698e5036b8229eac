"""`lorank doctor`: versions that were tested, a small training, and a text without secrets."""

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorank.cli import app
from lorank.doctor import self_test
from lorank.doctor.environment import SUPPORTED, Package, packages

ROOT = Path(__file__).parents[2]


def test_versions_are_those_of_the_project() -> None:
    newest = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = dict(part.split(">=") for part in project["dependencies"] if ">=" in part)
    assert {name: (lowest[name], newest[name]) for name in SUPPORTED} == SUPPORTED
    assert {one.name for one in packages() if one.installed == version("torch")} == {"torch"}


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [
        ("2.6.0+cu124", "ok"),
        ("2.13.0", "ok"),
        ("2.13.1", "newer than what was tested"),
        ("2.5.9", "older than 2.6, .*"),
        (None, "missing"),
    ],
)
def test_verdicts(installed: str | None, verdict: str) -> None:
    assert re.fullmatch(verdict, Package("torch", installed, "2.6", "2.13.0").verdict)


def test_it_tries_a_training_and_tells_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "someone"))
    result = CliRunner().invoke(app, ["doctor", "--json", str(tmp_path / "doctor.json")])
    assert result.exit_code == 0, result.output
    assert "ok     ranks before training, cpu: " in result.output
    assert "ok     ranks while training, cpu: " in result.output
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert [one["right"] for one in found["self_test"]] == [True, True]
    for text in (result.output, json.dumps(found)):
        assert "hf_secret" not in text
        assert str(tmp_path) not in text.replace(str(tmp_path / "doctor.json"), "")


def test_a_failure_is_told_and_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "_train", lambda *_: 1 / 0)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "FAILED ranks before training, cpu: ZeroDivisionError: division by zero" in result.output
