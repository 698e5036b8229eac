import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lorank.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def lorank(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_run_prints_results_ranks_and_where_things_are(tiny_recipe, tmp_path: Path) -> None:
    content = tiny_recipe(baselines=["lora"]).model_dump(mode="json", exclude={"resolved"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    result = lorank("run", str(tmp_path / "recipe.yaml"), "seed=3", "--output-dir", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for expected in (
        "i-lora",
        "lora",
        "accuracy",
        "448",
        "query",
        "intermediate",
        str(tmp_path / "out" / "adapter"),
        "ranks.png",
    ):
        assert expected in result.output
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["seed"] == 3


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x\nbudgt: r=2\n")
    result = lorank("run", str(tmp_path / "recipe.yaml"))
    assert result.exit_code == 1
    assert "budgt: unknown key (did you mean budget?)" in result.output
    assert "Traceback" not in result.output


def test_inspect_needs_a_config_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    result = lorank("inspect", str(tmp_path))
    assert result.exit_code == 0, result.output
    for expected in ("BertForSequenceClassification", "query", "attention.output", "48", "r=8", "448"):
        assert expected in result.output
    assert lorank("inspect", str(tmp_path), "--targets", ".*query").output.count("query") == 1
    assert lorank("inspect", str(tmp_path / "nothing")).exit_code == 1


def test_help_waits_for_neither_torch_nor_transformers() -> None:
    heavy = "import sys, lorank.cli; print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
