"""The card of a trained adapter: readable as a card, true to the run."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from lorank.report.model_card import write_model_card
from lorank.training.run import run


def test_a_run_leaves_a_card_with_its_picture_in_the_adapters_folder(tiny_recipe: Any, tmp_path: Path) -> None:
    result = run(tiny_recipe(baselines=["lora"]), tmp_path / "mood")
    card = ModelCard.load(tmp_path / "mood" / "adapter" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.tags == ["lora", "lorank", "i-lora"]
    assert card.data.base_model is None  # a folder, which the hub would refuse
    assert (tmp_path / "mood" / "adapter" / "ranks.png").read_bytes() == (tmp_path / "mood" / "ranks.png").read_bytes()
    assert "More Information Needed" not in card.text
    accuracy = result.results["i-lora"]["metrics"]["accuracy"]
    for expected in (
        "# mood",
        "i-lora",
        "![rank by layer and projection](ranks.png)",
        "Trained on 120 examples of `train.tsv`, 2 labels",
        "| i-lora (this adapter) | 448 |" if result.plan.spent == 448 else f"{result.plan.spent:,}",
        f"| {accuracy:.4f} |",
        "num_labels=2",
        "lorank export mood served",
        "vllm serve",
    ):
        assert expected in card.text
    table = [line for line in card.text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 4


def test_hub_names_go_into_the_cards_metadata(tmp_path: Path) -> None:
    from lorank.plan import RankPlan

    write_model_card(
        tmp_path, RankPlan({"a": 2, "b": 0}, {"a": 10, "b": 10}, "r=1", 20), title="x", base_model="org/base", method="lora",
        preset=None, data="Something.", hub_data="org/rows", task_type="SEQ_CLS", num_labels=2, seed=0,
        results={"lora": {"adapter_parameters": 20, "metrics": {"matthews": None}}},
    )  # fmt: skip
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("org/base", ["org/rows"])
    assert "1 of 2 modules" in card.text
    assert "| lora (this adapter) | 20 | - |" in card.text
    assert "ranks.png" not in card.text
