from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from lorank.cli import app


def test_several_budgets_without_data(tiny_folder: Path, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(str(tmp_path / "adapter"))
    words = ["prune", str(tmp_path / "adapter"), "--budget", "half,keep=25%", "--output", str(tmp_path / "small")]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert "half: " in said.output
    assert "% of the energy of the updates (squared singular values) is kept; least in " in said.output
    assert (tmp_path / "small" / "keep-25%" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "small" / "curve.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "half", "--text", "said"], "--text is of a data file; give one"),
        (
            ["--budget", "half", "--data", "r.yaml", "--label", "mood"],
            "--label is of a data file; the recipe says it itself (data.label",
        ),
        (["--budget", "half", "--data", "rows.csv", "train.epochs=1"], "'train.epochs=1' changes a recipe"),
        (["--budget", "half,r=1,half"], "budget half is given twice"),
        (["--budget", "half,much"], "budget 'much' cannot be read"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str) -> None:
    said = CliRunner().invoke(app, ["prune", "adapter", *words])
    assert said.exit_code == 1
    assert message in " ".join(said.output.split())
