"""`lorank doctor`: versions that were tested, a small training, and a text without secrets."""

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from lorank.cli import app
from lorank.doctor import self_test
from lorank.doctor.environment import SUPPORTED, Package, packages

ROOT = Path(__file__).parents[2]


def locked(name: str) -> dict[str, str]:
    """Version of each package in a lock."""
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.+]+)", text, re.M))


def test_the_lock_has_what_the_project_needs_and_a_hash_of_each_file() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = whole["project"], whole["dependency-groups"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    wanted = {"dev": project["dependencies"] + extras, **groups}
    for name, lines in wanted.items():
        versions = locked(name)
        for needed in map(Requirement, lines):
            if needed.name != "lorank":
                assert needed.specifier.contains(versions[canonicalize_name(needed.name)], prereleases=True), needed
    for path in (ROOT / "locks").glob("*.txt"):
        packages_of = re.split(
            r"\n(?=\w)", re.sub(r"^ *#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M).strip()
        )
        assert all(re.search(r"==.*--hash=sha256:[0-9a-f]{64}(\s|$)", one, re.S) for one in packages_of), path.name
    assert locked("torch-cpu")["torch"].split("+")[0] == locked("dev")["torch"]


def test_versions_are_those_of_the_project() -> None:
    newest = locked("dev")
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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[Errno 24] Too many open files: '/tmp/tmp5v'", "[Errno 24] Too many open files: (path)"),
        ("cannot open /home/ann/a.so: no such file (/usr/lib/b.so).", "cannot open (path): no such file ((path))."),
        (r"'C:\\Users\\Ann Lee\\x' and D:/a/b, \\server\share", "(path) and (path), (path)"),
        ("in /home/Ann Lee/x and /scratch/of ann/y", "in (path) and (path)"),
        ('LIB=/a:/b, file:///c, gcc -I/d "/e f/it\'s"', "LIB=(path), (path), gcc -I(path) (path)"),
        ("2/3 of https://docs.example/a/b, and/or ./c", "2/3 of https://docs.example/a/b, and/or ./c"),
    ],
)
def test_a_failure_is_told_without_paths(said: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(said)

    monkeypatch.setenv("HOME", "/home/Ann Lee")
    monkeypatch.setenv("TMPDIR", "/scratch/of ann")
    monkeypatch.setattr(self_test, "_base", fail)
    assert {one.said for one in self_test.self_test("cpu")} == {f"OSError: {shown}"}
