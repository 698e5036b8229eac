"""examples/prune.py, in this process."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from tests.examples.run_script import EXAMPLES
from tests.examples.test_trainers import llama
from transformers import AutoModelForCausalLM

from lorank import check_saved_adapter


def test_half_of_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = llama(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    model.save_pretrained(tmp_path / "adapter")
    texts = [json.dumps({"text": " ".join(f"w{(k * j + j) % 20}" for j in range(6))}) for k in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    monkeypatch.setattr(
        sys, "argv", ["prune.py", *(str(tmp_path / name) for name in ("adapter", "texts.jsonl", "half"))]
    )
    runpy.run_path(str(EXAMPLES / "prune.py"), run_name="__main__")
    held = check_saved_adapter(tmp_path / "half", tmp_path / "half" / "plan.json")
    assert 0 < held <= model.get_nb_trainable_parameters()[0] / 2
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "half")
    assert "loss" in capsys.readouterr().out
