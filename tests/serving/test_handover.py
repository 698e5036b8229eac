"""Plans in other tools' words, and seed adapters that PEFT continues to train."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from tests import expert_models
from tests.serving.conftest import FAMILIES, logits_of, plan_for
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import lorank
from lorank.errors import AdapterError, OutputError, PlanError
from lorank.plan import RankPlan
from lorank.serving import handover
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.handover import hand_over
from lorank.training.plan_stage import adapter_parameters


@pytest.fixture
def plan(bases: dict[str, Path]) -> RankPlan:
    return plan_for(AutoModelForCausalLM.from_pretrained(bases["decoder"]), str(bases["decoder"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_adapter_does_nothing_yet_and_has_the_ranks_of_the_plan(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    family, task = FAMILIES[name]
    plan = plan_for(family.from_pretrained(bases[name]), str(bases[name]))
    labels = 3 if name == "encoder" else None
    text, folder = hand_over(plan, "seed-adapter", tmp_path / "seed", task_type=task, num_labels=labels)
    assert (text, folder) == ("", tmp_path / "seed")
    files = AdapterFiles.read(tmp_path / "seed")
    assert {m: pair.rank for m, pair in files.pairs.items()} == {m: r for m, r in plan.ranks.items() if r}
    assert list(files.peft_scales().values()) == pytest.approx([plan.scale] * len(files.pairs))
    assert all(pair.a.any() and not pair.b.any() for pair in files.pairs.values())
    if name != "encoder":  # whose head is new
        assert torch.equal(logits_of(name, bases[name], tmp_path / "seed"), logits_of(name, bases[name]))
    assert {key.rpartition(".")[0] for key in files.saved_modules} == (
        {"base_model.model.classifier"} if name == "encoder" else set()
    )
    assert logits_of(name, bases[name], tmp_path / "seed").isfinite().all()
    assert RankPlan.load(tmp_path / "seed" / "plan.json") == plan


def test_peft_continues_to_train_a_seed_adapter(plan: RankPlan, bases: dict[str, Path], tmp_path: Path) -> None:
    hand_over(plan, "seed-adapter", tmp_path / "seed")
    base = AutoModelForCausalLM.from_pretrained(bases["decoder"])
    model = PeftModel.from_pretrained(base, str(tmp_path / "seed"), is_trainable=True)
    rows = [{"input_ids": list(range(k, k + 8)), "labels": list(range(k, k + 8))} for k in range(16)]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=8, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    before = trainer.evaluate(rows)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] < before
    trainer.save_model(str(tmp_path / "trained"))
    trained = AdapterFiles.read(tmp_path / "trained")
    assert {m: pair.rank for m, pair in trained.pairs.items()} == {m: r for m, r in plan.ranks.items() if r}
    assert all(pair.b.any() for pair in trained.pairs.values())


def test_the_words_for_peft_make_the_config_of_the_plan(plan: RankPlan) -> None:
    text, seed = hand_over(plan, "peft")
    made: dict[str, Any] = {"get_peft_model": lambda model, config: config, "model": None}
    exec(text.replace("from peft import LoraConfig, get_peft_model", ""), made | {"LoraConfig": LoraConfig}, made)
    wanted = plan.lora_config()
    for field in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"):
        assert getattr(made["config"], field) == getattr(wanted, field)
    assert seed is None


def test_the_words_for_unsloth_adapt_the_modules_of_the_plan(plan: RankPlan, bases: dict[str, Path]) -> None:
    """Of a list unsloth takes short names, which match every layer; a regular expression is passed on to PEFT."""
    from peft import get_peft_model

    text, _ = hand_over(plan, "unsloth")
    held: dict[str, Any] = {}

    class FastLanguageModel:
        @staticmethod
        def get_peft_model(model: Any, **options: Any) -> Any:
            held.update(options)

    exec(text.partition("\n")[2], {"FastLanguageModel": FastLanguageModel, "model": None})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["decoder"]), LoraConfig(**held))
    ranks = {
        n.removeprefix("base_model.model."): m.r["default"] for n, m in model.named_modules() if hasattr(m, "lora_A")
    }
    assert ranks == {m: r for m, r in plan.ranks.items() if r}


def test_axolotl_takes_whole_alphas_only(plan: RankPlan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"not a whole number above 0, which axolotl needs; .* seed-adapter"):
        hand_over(plan, "axolotl")
    whole = RankPlan(plan.ranks, plan.unit_costs, plan.budget, plan.budget_parameters, 2.0, plan.provenance)
    text, _ = hand_over(whole, "axolotl", tmp_path / "axolotl.yaml")
    assert (tmp_path / "axolotl.yaml").read_text() == text
    hand_over(whole, "axolotl", tmp_path / "axolotl.yaml")  # the same again
    (tmp_path / "axolotl.yaml").write_text("edited")
    with pytest.raises(OutputError, match="is there already"):
        hand_over(whole, "axolotl", tmp_path / "axolotl.yaml")
    hand_over(whole, "axolotl", tmp_path / "axolotl.yaml", overwrite=True)
    assert (tmp_path / "axolotl.yaml").read_text() == text
    found, config = yaml.safe_load(text), whole.lora_config()
    assert found["lora_rank_pattern"] == config.rank_pattern
    assert found["lora_alpha_pattern"] == config.alpha_pattern
    assert set(found["lora_target_modules"]) == config.target_modules
    assert (found["lora_r"], found["lora_alpha"], found["adapter"]) == (config.r, config.lora_alpha, "lora")


@pytest.mark.parametrize("tool", ["llama-factory", "ms-swift"])
def test_tools_without_patterns_continue_a_seed_adapter(tool: str, plan: RankPlan, tmp_path: Path) -> None:
    text, seed = hand_over(plan, tool, tmp_path / "seed")
    assert seed == tmp_path / "seed"
    assert str(seed) in text
    assert AdapterFiles.read(tmp_path / "seed").pairs


NAMES = ["my models/base", "it's", 'say "hi"', "$HOME `id` \\", "two\nlines", "# not: a comment", "héllo"]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_through_every_tools_syntax_unchanged(
    name: str, plan: RankPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "seed_adapter", lambda *arguments, **options: None)  # is made of the config alone
    whole = RankPlan(plan.ranks, plan.unit_costs, plan.budget, plan.budget_parameters, 2.0, plan.provenance)
    seed = tmp_path / name
    command = hand_over(whole, "ms-swift", seed, name)[0]
    assert shlex.split(command, comments=True) == [
        "swift", "sft", "--model", name, "--tuner_type", "lora", "--adapters", str(seed)
    ]  # fmt: skip
    config = yaml.safe_load(hand_over(whole, "llama-factory", seed, name)[0])
    assert (config["model_name_or_path"], config["adapter_name_or_path"]) == (name, str(seed))
    assert yaml.safe_load(hand_over(whole, "axolotl", model=name)[0])["base_model"] == name


def test_refusals(plan: RankPlan, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"tool 'axolot' is unknown \(did you mean axolotl\?\)"):
        hand_over(plan, "axolot")
    with pytest.raises(PlanError, match="give --model"):
        hand_over(RankPlan(plan.ranks, plan.unit_costs, "x", plan.budget_parameters), "peft")
    with pytest.raises(PlanError, match="the plan is for another model"):
        hand_over(plan, "seed-adapter", tmp_path / "seed", str(bases["encoder"]), task_type="SEQ_CLS")
    assert not (tmp_path / "seed").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(OutputError, match="is there already"):
        hand_over(plan, "seed-adapter", tmp_path / "mine")


def test_a_plan_with_experts_goes_where_peft_reads_it(tmp_path: Path) -> None:
    base = expert_models.make("qwen3-moe")
    base.save_pretrained(tmp_path / "base")
    scores = lorank.score(base, method="magnitude", targets=["o_proj"], target_parameters=["experts.down_proj"])
    plan = lorank.allocate(scores, "r=2", max_rank=4)
    text, _ = hand_over(plan, "peft", None, str(tmp_path / "base"))
    found: dict[str, Any] = {}
    exec(text.partition("model = ")[0], found)
    assert found["config"].to_dict() == plan.lora_config().to_dict()
    for tool in ("axolotl", "unsloth"):
        with pytest.raises(PlanError, match=f"not known to reach PEFT through {tool}'s settings; export --to peft"):
            hand_over(plan, tool, None, str(tmp_path / "base"))
    hand_over(plan, "seed-adapter", tmp_path / "seed", str(tmp_path / "base"))
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        seeded: Any = PeftModel.from_pretrained(expert_models.make("qwen3-moe"), str(tmp_path / "seed"))
        assert torch.equal(seeded(input_ids=ids).logits, base(input_ids=ids).logits)
    assert adapter_parameters(tmp_path / "seed") == plan.spent
