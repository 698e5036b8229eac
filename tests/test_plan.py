import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import BertForSequenceClassification

from lorank import LorankError, RankPlan
from tests.conftest import tiny_config

NAMES = [
    f"bert.encoder.layer.{layer}.{kind}"
    for layer in range(2)
    for kind in ("attention.self.query", "attention.output.dense", "output.dense")
]


def some_plan(ranks: tuple[int, ...] = (2, 0, 1, 3, 1, 0)) -> RankPlan:
    named = dict(zip(NAMES, ranks, strict=True))
    return RankPlan(named, dict.fromkeys(NAMES, 32), "1k", 1000, 1.5, {"method": "i-lora"})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    some_plan().save(tmp_path / "plan.json")
    assert RankPlan.load(tmp_path / "plan.json") == some_plan()
    assert json.loads((tmp_path / "plan.json").read_text())["budget"] == {
        "asked": "1k",
        "parameters": 1000,
        "spent": 224,
    }


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(0, 4)] * 6).filter(any))
def test_peft_adapts_exactly_the_plan(ranks: tuple[int, ...]) -> None:
    plan = some_plan(ranks)
    model = get_peft_model(BertForSequenceClassification(tiny_config()), plan.lora_config())
    layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    assert {n: m.r["default"] for n, m in layers.items()} == {n: r for n, r in plan.ranks.items() if r}
    assert {m.scaling["default"] for m in layers.values()} == {plan.scale}


def test_a_budget_in_units_of_rank_is_not_said_to_hold_parameters(tmp_path: Path) -> None:
    plan = RankPlan({"wide": 3, "narrow": 1}, {"wide": 30, "narrow": 10}, "rank=4", 100, budget_units=4)
    assert plan.spending == "4 units of rank (4 asked for), 100 parameters"
    assert "4 units of rank (4 asked for), 100 parameters" in repr(plan)
    plan.save(tmp_path / "plan.json")
    assert RankPlan.load(tmp_path / "plan.json") == plan
    some_plan().save(tmp_path / "older.json")  # a plan in parameters is written as it always was
    assert "units" not in json.loads((tmp_path / "older.json").read_text())["budget"]
    assert some_plan().spending == "224 of 1,000 parameters"


def test_the_config_says_the_same_scale_to_engines_that_ignore_patterns() -> None:
    config = some_plan().lora_config(lora_dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 4.5, 0.1)
    assert config.rank_pattern["^bert.encoder.layer.1.attention.self.query$"] == 3
    with pytest.raises(LorankError, match="decided by the plan"):
        some_plan().lora_config(r=4)
    with pytest.raises(LorankError, match="every rank"):
        some_plan((0,) * 6).lora_config()


def test_the_scale_of_rslora_is_written_so_that_no_engine_has_to_know_it(tmp_path: Path) -> None:
    plan = replace(some_plan(), alpha=8.0, rslora=True)
    config = plan.lora_config()
    ours = get_peft_model(BertForSequenceClassification(tiny_config()), config)
    assert not config.use_rslora
    same = LoraConfig(
        r=3, lora_alpha=8, use_rslora=True, rank_pattern=config.rank_pattern, target_modules=config.target_modules
    )
    theirs = get_peft_model(BertForSequenceClassification(tiny_config()), same)
    for (name, mine), (_, layer) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        if isinstance(mine, LoraLayer):
            rank = plan.ranks[name.removeprefix("base_model.model.")]
            assert mine.scaling["default"] == pytest.approx(layer.scaling["default"]) == pytest.approx(8 / rank**0.5)
    plan.save(tmp_path / "plan.json")
    assert RankPlan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == 2  # earlier versions would scale it otherwise
    some_plan().save(tmp_path / "other.json")
    assert "rslora" not in (tmp_path / "other.json").read_text()
    with pytest.raises(LorankError, match="has no alpha"):
        replace(some_plan(), rslora=True)


@pytest.mark.parametrize("ranks", [(-1, 0, 0, 0, 0, 0), (1.0, 0, 0, 0, 0, 0), (40, 0, 0, 0, 0, 0)])
def test_ranks_that_cannot_be_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(LorankError):
        some_plan(ranks)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace('"rank": 3', '"rank": 4'), "edited"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "version 99"),
        (lambda text: "[]", "not a lorank plan"),
        (lambda text: "", "damaged"),
        (lambda text: "\udcff", "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "plan.json"
    some_plan().save(path)
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(LorankError, match=message):
        RankPlan.load(path)
    with pytest.raises(LorankError, match="no such plan"):
        RankPlan.load(tmp_path / "other.json")


def test_moved_share_is_the_part_spent_elsewhere() -> None:
    assert some_plan().moved_share(some_plan()) == 0
    assert some_plan((2, 0, 1, 3, 1, 0)).moved_share(some_plan((2, 0, 1, 2, 1, 1))) == pytest.approx(1 / 7)
    with pytest.raises(LorankError):
        some_plan().moved_share(RankPlan({"other": 1}, {"other": 1}, "1", 1))
