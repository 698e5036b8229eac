"""Commands that need neither weights nor training load no heavy package, nor do the declarations that they read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lorank.scores import ImportanceScores

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "matplotlib", "scipy", "sklearn")
DECLARATIONS = (
    "lorank",
    "lorank.methods",
    "lorank.engine.options",
    "lorank.recipe.files",
    "lorank.recipe.recipe",
    "lorank.allocation",
    "lorank.allocation.files",
    "lorank.plan",
    "lorank.scores",
    "lorank.report.tables",
    "lorank.cli",
)
SCRIPT = """
import contextlib, importlib, io, json, sys

heavy, found = set(json.loads(sys.argv[1])), []
for module in json.loads(sys.argv[2]):
    importlib.import_module(module)
    found.append([module, 0, "", sorted(heavy & set(sys.modules))])
for arguments in json.loads(sys.argv[3]):
    from lorank.cli import app

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = app(arguments)
        except SystemExit as ended:
            code = ended.code
    found.append([arguments, code or 0, said.getvalue(), sorted(heavy & set(sys.modules))])
print("\\n" + json.dumps(found))
"""


def loaded(modules: Any, commands: Any, folder: Path) -> list[tuple[Any, int, str, list[str]]]:
    """What was loaded, exit code, what was said and heavy packages, after each of these in one fresh process."""
    asked = [json.dumps(one) for one in (HEAVY, modules, commands)]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *asked], capture_output=True, text=True, check=True, cwd=folder)
    return [tuple(one) for one in json.loads(run.stdout.splitlines()[-1])]


def test_declarations_load_no_heavy_package(tmp_path: Path) -> None:
    found = loaded(DECLARATIONS, [], tmp_path)
    assert [what for what, *_ in found] == list(DECLARATIONS)
    for module, _, _, heavy in found:
        assert not heavy, module


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Scores of two modules, and recipes that cannot be read."""
    values = {f"layer.{k}.query": np.array([3.0, 2.0, 1.0]) + k for k in (0, 1)}
    ImportanceScores(values, dict.fromkeys(values, 32), provenance={"base_parameters": 1000}).save(
        tmp_path / "s.safetensors"
    )
    content: dict[str, Any] = {"model": "x", "budget": "r=1", "data": {"name": "y"}}
    wrong = {
        "key": {"trian": {"epochs": 1}},
        "method": {"method": "mine", "measure": {"every": 2}},
        "old": {"method": "gradient", "calibration": {"exampels": 8}, "allocation": {"max_rank": 4}},
    }
    for name, more in wrong.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**content, **more}))
    return tmp_path


def test_commands_load_no_heavy_package(files: Path) -> None:
    commands = [
        ["--help"],
        ["--version"],
        *(
            [name, "--help"]
            for name in (
                "run",
                "score",
                "allocate",
                "train",
                "prune",
                "export",
                "verify",
                "compare",
                "sweep",
                "suggest",
                "evaluate",
                "init",
            )
        ),
        ["methods"],
        ["allocate", "s.safetensors", "--budget", "r=1", "--output", "one.json"],
        ["allocate", "s.safetensors", "--budget", "r=2", "--output", "two.json"],
        ["plan", "show", "one.json"],
        ["plan", "diff", "one.json", "two.json"],
    ]
    for command, code, said, heavy in loaded([], commands, files):
        assert code == 0, (command, said)
        assert not heavy, command


def test_what_is_wrong_with_a_recipe_is_said_before_anything_heavy_is_loaded(files: Path) -> None:
    Path(files, "plan.json").write_text("{}")
    key = "trian: unknown key (did you mean train?)"
    commands = {
        "run key.yaml": key,
        "run method.yaml": "method: method 'mine' is unknown; allowed: i-lora",
        "run nothing.yaml": "nothing.yaml: no such recipe",
        "score key.yaml": key,
        "score old.yaml": "exampels: unknown key",
        "score key.yaml --method gradient": key,
        "train key.yaml --plan plan.json": key,
        "prune adapter --budget r=1 --data key.yaml": key,
        "evaluate adapter --data key.yaml": key,
        "evaluate adapter --samples 2": "nothing is asked: give --tasks",
        "run key.yaml --plugin nothing.py": "plugin nothing.py: no such file",
    }
    found = loaded([], [command.split() for command in commands], files)
    for (command, code, said, heavy), expected in zip(found, commands.values(), strict=True):
        assert code == 1, command
        assert expected in said, command
        assert not heavy, command
