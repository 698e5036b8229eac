import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lorank import ImportanceScores
from lorank.cli import app


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
    assert lorank("inspect", str(tmp_path / "nothing")).exit_code == 1


@pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
def test_a_recipe_of_format_1_scores_by_another_method(tiny_folder, tiny_data, tmp_path: Path) -> None:
    content = {
        "model": str(tiny_folder),
        "budget": "r=1",
        "data": tiny_data,
        "method": "i-lora",
        "stage2": {"epochs": 1},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    output = tmp_path / "scores.safetensors"
    result = lorank("score", str(tmp_path / "old.yaml"), "--method", "magnitude", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert ImportanceScores.load(output).provenance["method"] == "magnitude"
