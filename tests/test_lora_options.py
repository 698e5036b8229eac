"""Whatever options a plan's LoraConfig is made with: PEFT trains the plan's own parameters to the last one, or it is refused."""

import dataclasses
from typing import Any

import pytest
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import config as options
from transformers import LlamaConfig, LlamaForCausalLM

from lorank import RankPlan
from lorank.errors import LorankError, LorankWarning, PlanError
from lorank.lora_options import _FREE, _REFUSED, DECIDED

CONFIG = LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
COSTS = {
    f"model.layers.{layer}.{name}": cost
    for layer in range(2)
    for name, cost in (("self_attn.q_proj", 32), ("self_attn.v_proj", 32), ("mlp.up_proj", 48))
}
PLAN = RankPlan(dict(zip(COSTS, (3, 1, 2, 0, 2, 5), strict=True)), COSTS, "1k", 1000)

STARTS = str({each.name: each.type for each in dataclasses.fields(LoraConfig)}["init_lora_weights"])
VALUES: dict[str, list[Any]] = {
    "alora_invocation_tokens": [[1]],
    "arrow_config": [options.ArrowConfig()],
    "bias": ["none", "all", "lora_only"],
    "ensure_weight_tying": [True],
    "eva_config": [EvaConfig(rho=1)],
    "exclude_modules": [["q_proj"], ".*v_proj"],
    "fan_in_fan_out": [True],
    "inference_mode": [True, False],
    "init_lora_weights": [
        True,
        False,
        "gaussian",
        "orthogonal",
        "olora",
        "pissa",
        "pissa_niter_2",
        "eva",
        *(["mica"] if "mica" in STARTS else []),
        "loftq",
    ],
    "layer_replication": [[(0, 2), (1, 2)]],
    "layers_pattern": ["layers"],
    "layers_to_transform": [[0], 1],
    "lora_bias": [True, False],
    "lora_dropout": [0.1],
    "qalora_group_size": [8],
    "runtime_config": [options.LoraRuntimeConfig()],
    "target_parameters": [["up_proj.weight"]],
    "task_type": ["CAUSAL_LM", "SEQ_CLS"],
    "use_bdlora": [options.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)],
    "use_dora": [True, False],
    "use_qalora": [True],
}
# These are younger than the lowest PEFT that is supported.
for option, value in (("kasa", "KasaConfig"), ("monteclora", "MontecloraConfig"), ("velora", "VeloraConfig")):
    if hasattr(options, value):
        VALUES[f"{option}_config"] = [getattr(options, value)()]
# These need other packages or runs before them, or are words alone.
WITHOUT_A_TRIAL = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "revision", "trainable_token_indices",
}  # fmt: skip


def test_every_option_of_the_installed_peft_is_known() -> None:
    names = {each.name for each in dataclasses.fields(LoraConfig)}
    assert names <= {*DECIDED, *_FREE, *_REFUSED}
    assert names <= {*DECIDED, *VALUES, *WITHOUT_A_TRIAL}


@pytest.mark.filterwarnings("ignore:`eva_config`|aLoRA:UserWarning")
@pytest.mark.parametrize("option", VALUES)
def test_trained_is_what_the_plan_spends_or_it_is_refused(option: str) -> None:
    outcomes = []
    for value in VALUES[option]:
        try:
            config = PLAN.lora_config(**{option: value})
        except PlanError:
            outcomes.append("refused")
            continue
        model = get_peft_model(LlamaForCausalLM(CONFIG), config)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PLAN.spent, value
        outcomes.append("trained")
    assert ("trained" in outcomes) == (option in _FREE or False in VALUES[option])


def test_the_plan_decides_these() -> None:
    for option in DECIDED:
        with pytest.raises(PlanError, match="decided by the plan"):
            PLAN.lora_config(**{option: None})
    with pytest.raises(PlanError, match="did you mean lora_dropout"):
        PLAN.lora_config(lora_dropuot=0.1)


def test_heads_and_tokens_are_trained_whole_beside_the_budget() -> None:
    def trained(**options: Any) -> int:
        model = get_peft_model(LlamaForCausalLM(CONFIG), PLAN.lora_config(**options))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert trained(modules_to_save=["lm_head"]) == PLAN.spent + 32 * 16
    with pytest.warns(LorankWarning, match="trains 2 rows of embeddings whole"):
        assert trained(trainable_token_indices=[1, 2]) == PLAN.spent + 2 * 16
    with pytest.raises(
        LorankError, match=r"'mlp' is trained whole .* leave out the plan's 'model\.layers\.0\.mlp\.up_proj'"
    ):
        trained(modules_to_save=["mlp"])


def test_a_module_of_rank_0_is_not_adapted_by_the_end_of_its_name() -> None:
    plan = RankPlan({"q": 2, "side.q": 0}, {"q": 4, "side.q": 4}, "8", 8)
    with pytest.raises(PlanError, match=r"'side\.q' has rank 0, but PEFT would adapt it as it ends with 'q'"):
        plan.lora_config()


def test_eva_keeps_the_ranks_without_redistribution() -> None:
    assert PLAN.lora_config(init_lora_weights="eva", eva_config=EvaConfig(rho=1)).r == 5
    with pytest.raises(PlanError, match="rho 2 gives ranks of its own"):
        PLAN.lora_config(init_lora_weights="eva", eva_config=EvaConfig())
