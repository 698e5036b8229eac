"""The example for images, and the notebook, each in this process."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.examples.run_script import EXAMPLES
from transformers import ViTForImageClassification, set_seed

from lorank import RankPlan, check_saved_adapter

NOTEBOOK = EXAMPLES / "first_steps.ipynb"


def test_an_image_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vision.py", str(tmp_path / "out"), "12"])
    ran = runpy.run_path(str(EXAMPLES / "vision.py"), run_name="__main__")
    plan = RankPlan.load(tmp_path / "out" / "plan.json")
    assert plan.ranks == ran["allocation"].plan.ranks
    assert 0 < plan.spent <= plan.budget_parameters
    trained = ran["trainer"].model.eval()
    check_saved_adapter(tmp_path / "out" / "adapter", plan)
    set_seed(0)  # as the script makes its model
    fresh = ViTForImageClassification(ran["base"].config)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "out" / "adapter")).eval()
    with torch.no_grad():
        expected = trained(pixel_values=ran["images"][:4]).logits
        assert torch.allclose(loaded(pixel_values=ran["images"][:4]).logits, expected, atol=1e-5)


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["plan"].spent <= names["plan"].budget_parameters
    assert (tmp_path / "first-steps" / "adapter" / "adapter_model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "r=4: " in said
    assert "training loss: " in said
    assert "vLLM" in said
