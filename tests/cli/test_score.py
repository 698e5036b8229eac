from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lorank import ImportanceScores
from lorank.cli import app


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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
