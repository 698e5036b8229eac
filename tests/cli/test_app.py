import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import lorank as lorank_package
from lorank.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x\nbudgt: r=2\n")
    result = lorank("run", str(tmp_path / "recipe.yaml"))
    assert result.exit_code == 1
    assert "budgt: unknown key (did you mean budget?)" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["run", "--nothing", "x"], "No such option"),
        (["rum"], "No such command 'rum'"),
        (["plan", "shaw"], "No such command 'shaw'"),
        (["allocate", "x", "--budget"], "requires an argument"),
        (["allocate", "x", "--budget", "1", "--max-rank", "much"], "Invalid value for '--max-rank'"),
        (["plan", "export", "x", "--to", "seed-adapter", "--num-labels", "0"], "Invalid value for '--num-labels'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = lorank(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert "--help` shows how it is used" in result.output
    assert result.output.count("\n") == 1


def test_the_version_is_the_packages() -> None:
    result = lorank("--version")
    assert (result.exit_code, result.output) == (0, f"lorank {version('lorank')}\n")
    assert lorank_package.__version__ == version("lorank")


def test_outputs_and_recipes_that_cannot_be(tiny_recipe, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    content = tiny_recipe(method="lora", preset=None).model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe, below = str(tmp_path / "recipe.yaml"), str(tmp_path / "file" / "out")
    for arguments, message in (
        (["run", recipe, "--output", below], "cannot be made"),
        (["compare", recipe, "--methods", "lora", "--seeds", "1", "--output", below], "cannot be made"),
        (
            ["compare", recipe, "--equal-within", "0", "--output", below],
            "--equal-within is 0.0; allowed: a difference above 0",
        ),
        (
            ["compare", recipe, "--methods", "lora", "--seeds", "1", "--output", str(tmp_path / "file")],
            "cannot be made",
        ),
        (["score", recipe, "--method", "magnitude", "--output", below], "cannot be written"),
        (["run", str(tiny_folder)], "is a folder; give a YAML file"),
        (["run", str(tmp_path / "latin.yaml")], "not UTF-8, at byte 10"),
    ):
        result = lorank(*arguments)
        assert result.exit_code == 1
        last = result.output.splitlines()[-1]
        assert last.startswith("error: "), (arguments, result.output)
        assert message in last, arguments


def test_help_waits_for_neither_torch_nor_transformers() -> None:
    heavy = "import sys, lorank.cli; print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("module", ["lorank", "lorank.cli"])
def test_it_runs_as_a_module(module: str) -> None:
    shown = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"lorank {version('lorank')}\n"
