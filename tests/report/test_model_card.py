"""The card of a trained adapter: readable as a card, true to the run."""

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lorank.plan import RankPlan
from lorank.report.model_card import write_model_card
from lorank.runs.run import run


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
        "lorank verify mood",
        "lorank merge mood merged",
    ):
        assert expected in card.text
    assert "vllm serve" not in card.text  # verify and merge below
    table = [line for line in card.text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 4


def test_hub_names_go_into_the_cards_metadata(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["my models/base", "it's", 'a"); import os; ("', "$HOME `id`", "back\\slash", "-rf"])
def test_the_cards_code_holds_names_as_strings(name: str, tmp_path: Path) -> None:
    write_model_card(
        tmp_path, RankPlan({"a": 2}, {"a": 10}, "r=1", 20), title=name, base_model=name, method="lora", preset=None,
        data="Something.", hub_data=None, task_type="CAUSAL_LM", num_labels=1, seed=0,
        results={"lora": {"adapter_parameters": 20, "metrics": {"loss": 1.0}}},
    )  # fmt: skip
    card = (tmp_path / "README.md").read_text()
    python, shell = (card.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "sh"))
    strings = [node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)]
    assert strings == [name, name]
    calls = [node.func.attr for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]  # type: ignore[attr-defined]
    assert calls == ["from_pretrained", "from_pretrained"]
    word = f"./{name}" if name.startswith("-") else name
    lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
    assert lines[0] == ["lorank", "export", word, "served"]
    assert lines[1] == ["lorank", "verify", "served", "--against", word]
    assert lines[2][:3] == ["vllm", "serve", word]
    assert lines[2][-1] == f"{word}=served"


@pytest.mark.parametrize(
    ("task_type", "whole", "resized", "commands"),
    [
        ("SEQ_CLS", {"classifier": 10}, False, ["verify", "merge"]),
        ("TOKEN_CLS", {"classifier": 10}, False, ["verify", "merge"]),
        ("SEQ_CLS", {"classifier": 10}, True, ["merge"]),
        ("CAUSAL_LM", {"lm_head": 10}, False, ["merge"]),
        ("CAUSAL_LM", {}, False, ["export", "verify"]),
    ],
)
def test_the_card_recommends_what_can_serve_it(
    task_type: str, whole: dict[str, int], resized: bool, commands: list[str], tmp_path: Path
) -> None:
    write_model_card(
        tmp_path, RankPlan({"a": 2}, {"a": 10}, "r=1", 20), title="x", base_model="org/base", method="lora", preset=None,
        task_type=task_type, num_labels=2, whole=whole, resized=resized,
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("lorank ")] == commands
    assert ("vllm serve" in text) == ("llama.cpp" in text) == ("export" in commands)
