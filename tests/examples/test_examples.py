"""The scripts of examples/, at a small size."""

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from tests.conftest import tiny_writer
from tests.examples.run_script import EXAMPLES, run_script
from tests.test_processes import launched
from transformers import AutoModelForCausalLM

from lorank import AllocationLoop, RankPlan


def adapter_parameters(folder: Path) -> int:
    return sum(t.numel() for name, t in load_file(folder / "adapter_model.safetensors").items() if ".lora_" in name)


@pytest.mark.long
def test_i_lora_with_trl(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    script = EXAMPLES / "i_lora_trl.py"
    assert len(script.read_text().splitlines()) <= 25
    model = tiny_writer("decoder", tiny_folder, tmp_path / "llama")
    run_script(script.name, model, tiny_data["train"], tmp_path / "out", 12)
    plan = RankPlan.load(tmp_path / "out" / "search" / "plan.json")
    assert plan.provenance["method"] == "i-lora"
    assert plan.provenance["scoring_examples"] == 12  # a tenth of 120, tokenised by TRL
    assert 0 < plan.spent <= plan.budget_parameters
    adapter = tmp_path / "out" / "adapter"
    assert adapter_parameters(adapter) == plan.spent
    assert PeftConfig.from_pretrained(str(adapter)).peft_type == "LORA"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        adapted = loaded(input_ids=ids).logits
        with loaded.disable_adapter():
            assert not torch.allclose(adapted, loaded(input_ids=ids).logits)


@pytest.mark.long
def test_a_4_bit_base_that_fsdp_shards(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")
    model, rows = tiny_writer("decoder", tiny_folder, tmp_path / "llama"), tmp_path / "rows"
    rows.mkdir()
    (rows / "train.csv").write_text("\n".join(["text", *(f"the day was cold {k}" for k in range(40))]))
    script = str(EXAMPLES / "allocate_with_fsdp.py")
    done = launched("tests.examples.fsdp_on_cpu", script, str(model), str(rows), str(tmp_path / "out"), "30")
    said = next(line for line in done.stdout.splitlines() if "parameters in" in line)
    held, budget = (int(number.replace(",", "")) for number in said.split()[:3:2])
    assert adapter_parameters(tmp_path / "out/adapter") == held <= budget
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(tmp_path / "out/adapter"))
    assert loaded.active_adapter == "default"


def test_a_loop_of_ones_own(
    tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped on the way and started again, it ends with the same plan and the same weights."""
    script = EXAMPLES / "own_loop.py"
    assert len(script.read_text().splitlines()) < 60
    model = tiny_writer("decoder", tiny_folder, tmp_path / "llama")
    resumed, load = [], AllocationLoop.load_state_dict

    def watched(self: AllocationLoop, state: Any) -> None:
        load(self, state)
        resumed.append(self.step)

    monkeypatch.setattr(AllocationLoop, "load_state_dict", watched)
    whole, again = tmp_path / "whole", tmp_path / "again"
    for folder in (whole, again):
        # In this process, which has loaded everything already.
        monkeypatch.setattr(sys, "argv", [str(script), str(model), tiny_data["train"], str(folder), "12"])
        runpy.run_path(str(script), run_name="__main__")
        again.mkdir(exist_ok=True)
        shutil.copy(whole / "checkpoint.pt", again)
    assert resumed == [6]
    plan = RankPlan.load(whole / "plan.json")
    assert plan.provenance["method"] == "i-lora"
    assert adapter_parameters(whole / "adapter") == plan.spent
    assert RankPlan.load(again / "plan.json") == plan
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
