"""The card of an adapter that somebody saves: it names lorank, the budget, the plan and how it was made."""

import ast
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from lorank.in_training.adapter_audit import audit_saves
from lorank.plan import RankPlan
from lorank.report.adapter_card import write_adapter_card


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    return get_peft_model(base, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))


@pytest.fixture
def plan(model: PeftModel) -> RankPlan:
    names = [name for name, module in model.get_base_model().named_modules() if name.endswith("query")]
    costs = dict.fromkeys(names, 32)
    return RankPlan(dict.fromkeys(names, 2), costs, "r=2", 128, provenance={"method": "adalora", "preset": "paper"})


def test_a_saved_adapter_has_it(model: PeftModel, plan: RankPlan, tmp_path: Path) -> None:
    audit_saves(model, plan, "default", ["adalora, budget r=2"])
    model.save_pretrained(str(tmp_path / "mine"))
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert {"lora", "lorank", "adalora"} <= set(card.data.tags)
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-classification")
    for expected in (
        "# mine",
        "with lorank",
        "budget `r=2`",
        "128 adapter parameters",
        "- adalora, budget r=2\n",
        "| 0 | 2 |",
    ):
        assert expected in card.text.replace("128 of 128", "128")
    code = card.text.partition("```python\n")[2].partition("```")[0]
    ast.parse(code)
    assert "AutoModelForSequenceClassification" in code
    written = (tmp_path / "mine" / "README.md").read_text()
    model.save_pretrained(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "README.md").read_text() == written


def test_what_somebody_wrote_stays(model: PeftModel, plan: RankPlan, tmp_path: Path) -> None:
    audit_saves(model, plan)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# My adapter\n")
    model.save_pretrained(str(tmp_path))
    assert "# My adapter" in (tmp_path / "README.md").read_text()
    assert "lorank" not in (tmp_path / "README.md").read_text()


def test_generated_cards_are_replaced_and_their_metadata_stays(
    model: PeftModel, plan: RankPlan, tmp_path: Path
) -> None:
    audit_saves(model, plan)
    trl = "It has been trained using [TRL](https://github.com/huggingface/trl)."
    (tmp_path / "README.md").write_text(f"---\ntags: [sft]\ndatasets: [org/rows]\n---\n\n# Model Card for x\n{trl}\n")
    model.save_pretrained(str(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert trl not in card.text
    assert "sft" in card.data.tags
    assert card.data.datasets == ["org/rows"]


def test_a_base_model_that_is_not_known_has_no_name(model: PeftModel, plan: RankPlan, tmp_path: Path) -> None:
    model.get_base_model().name_or_path, model.peft_config["default"].base_model_name_or_path = "", None
    model.peft_config["default"].task_type = None
    model.save_pretrained(str(tmp_path))
    write_adapter_card(tmp_path, plan, [], title="x")
    text = (tmp_path / "README.md").read_text()
    assert "A LoRA adapter with a rank" in text
    assert 'BertForSequenceClassification.from_pretrained("BASE"' in text
