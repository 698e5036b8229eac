"""An adapter of one revision of a hub model: what is read of the base is of that revision, and not of the main branch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.serving.conftest import tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, set_seed

from lorank.errors import AdapterError
from lorank.runs.pruning_data import DataFile, recipe_of_file
from lorank.serving.export import export
from lorank.serving.merge import merge
from lorank.serving.verify import verify


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trained on `v1`, in the cache of the hub's client; the main branch is a smaller model without a tokenizer."""
    folder = tmp_path / "hub" / "models--tiny--llama"
    (folder / "refs").mkdir(parents=True)
    for name, commit, sizes in (("main", "a" * 40, {"hidden_size": 16}), ("v1", "b" * 40, {})):
        (folder / "refs" / name).write_text(commit)
        set_seed(0)
        model = LlamaForCausalLM(tiny_llama(**sizes))
        model.save_pretrained(folder / "snapshots" / commit)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "revision": "v1"}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained("tiny/llama", revision="v1"), LoraConfig(**options))
    for key, parameter in adapted.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("built", [False, True])
def test_an_adapter_is_checked_against_and_merged_into_its_revision(
    built: bool, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if built:
        monkeypatch.setattr("lorank.serving.base_layers.stored_layers", lambda *_: None)
    found = verify(adapter)
    assert not found.unread_base
    assert {one.engine: one.answer for one in found.verdicts}["peft"] == "right"
    served = export(adapter, tmp_path / "served")
    assert all(one.right for one in served.verdicts)
    assert json.loads((tmp_path / "served" / "adapter_config.json").read_text())["revision"] == "v1"
    merge(adapter, tmp_path / "merged")
    assert AutoConfig.from_pretrained(tmp_path / "merged").hidden_size == 32
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained("tiny/llama", revision="v1")
    ids = torch.arange(8)[None]
    wanted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(whole(ids).logits, wanted, atol=2e-5, rtol=2e-5)


def test_another_base_has_no_revision_of_this_one(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "hub/models--tiny--llama/snapshots" / ("a" * 40), tmp_path / "small")
    with pytest.raises(AdapterError, match="give the base model that it was trained on"):
        verify(adapter, base=str(tmp_path / "small"))


def test_pruning_with_a_file_takes_the_revision(adapter: Path, tmp_path: Path) -> None:
    rows = ({"text": f"the day {number}", "label": "was fine"} for number in range(4))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe, _ = recipe_of_file(adapter, DataFile(tmp_path / "rows.jsonl"))
    assert (recipe.model.name, recipe.model.revision) == ("tiny/llama", "v1")
