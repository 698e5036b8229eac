"""An adapter and a recipe for different tasks are told apart before any weights are loaded."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, TaskType, get_peft_model
from tests.conftest import tiny_config, tiny_writer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertForSequenceClassification

from lorank.errors import AdapterError
from lorank.runs.prune_adapter import prune_adapter


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)


def save_classifier(folder: Path, labels: int) -> Path:
    base = BertForSequenceClassification(tiny_config(num_labels=labels))
    adapted = get_peft_model(base, LoraConfig(target_modules=["query"], task_type=TaskType.SEQ_CLS))
    adapted.save_pretrained(str(folder))
    return folder


def test_an_adapter_that_writes_and_a_recipe_that_classifies(
    tiny_recipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_writer("decoder", tiny_folder, tmp_path / "base"))
    adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    message = r"is an adapter for CAUSAL_LM .*, but data\.task classification of the recipe on .* is for SEQ_CLS"
    with pytest.raises(AdapterError, match=message):
        prune_adapter(tmp_path / "adapter", "r=1", tmp_path / "small", tiny_recipe())


def test_an_adapter_that_classifies_and_a_recipe_that_writes(
    tiny_recipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    writer = tiny_writer("encoder-decoder", tiny_folder, tmp_path / "base")
    files = {"train": "a.jsonl", "test": "b.jsonl", "task": "boolq"}
    recipe = tiny_recipe(model=str(writer), data=files, method="lora")
    with pytest.raises(AdapterError, match=r"for SEQ_CLS \(a model that classifies texts\), .* is for SEQ_2_SEQ_LM"):
        prune_adapter(save_classifier(tmp_path / "adapter", 2), "r=1", tmp_path / "small", recipe)


def test_a_head_for_another_number_of_labels(tiny_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has a head for 5 labels, the data of the recipe have 2"):
        prune_adapter(save_classifier(tmp_path / "adapter", 5), "r=1", tmp_path / "small", tiny_recipe())


def test_a_head_for_other_labels(tiny_recipe: Any, tmp_path: Path) -> None:
    adapter = save_classifier(tmp_path / "adapter", 2)
    (adapter / "label_names.json").write_text('["cold", "warm"]')
    with pytest.raises(
        AdapterError, match="trained with the labels 'cold', 'warm', the data of the recipe have 'bad', 'good'"
    ):
        prune_adapter(adapter, "r=1", tmp_path / "small", tiny_recipe())


def test_a_config_that_is_no_adapters(tiny_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        prune_adapter(tmp_path, "r=1", tmp_path / "small", tiny_recipe())
