from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    Qwen2Config,
)

import lorank
from lorank import LorankError
from lorank.errors import LorankWarning, TargetError
from lorank.model_parts import unwrapped
from lorank.module_names import places
from lorank.targets import find_targets, unit_costs

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
ENCODER = ("query", "key", "value", "attention.output", "intermediate", "output")
ARCHITECTURES = {
    "bert": (AutoModelForSequenceClassification, BertConfig(**SMALL), ENCODER),
    "mpnet": (AutoModelForSequenceClassification, MPNetConfig(**SMALL), ("q", "k", "v", "o", "intermediate", "output")),
    "deberta": (
        AutoModelForSequenceClassification,
        DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True),
        ("query_proj", "key_proj", "value_proj", "attention.output", "intermediate", "output"),
    ),
    "llama": (
        AutoModelForCausalLM,
        LlamaConfig(**SMALL, num_key_value_heads=1),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gpt2": (
        AutoModelForCausalLM,
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64),
        ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_layer_of_the_blocks_and_nothing_else(name: str) -> None:
    family, config, projections = ARCHITECTURES[name]
    with torch.device("meta"):
        model = family.from_config(config)
    targets = find_targets(model)
    placed = places(target.name for target in targets)
    assert len(targets) == 2 * len(projections)
    assert tuple(dict.fromkeys(place.projection for place in placed.values())) == projections
    assert {place.layer for place in placed.values()} == {0, 1}
    assert all(target.d_in >= 8 and target.d_out >= 8 for target in targets)


def test_an_encoder_decoder_has_two_stacks() -> None:
    config = BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=64,
    )
    with torch.device("meta"):
        targets = find_targets(AutoModelForSeq2SeqLM.from_config(config))
    placed = places(target.name for target in targets)
    assert {place.stack for place in placed.values()} == {"model.encoder.layers", "model.decoder.layers"}
    decoder = [place.projection for place in placed.values() if "decoder" in place.stack]
    assert "encoder_attn.q_proj" in decoder
    assert len(set(decoder)) == len(decoder)


def test_a_unit_of_rank_costs_what_peft_adds() -> None:
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"][1])
    targets = find_targets(model)
    peft = get_peft_model(model, LoraConfig(r=1, target_modules=[target.name for target in targets]))
    added = sum(p.numel() for n, p in peft.named_parameters() if ".lora_" in n)
    assert added == sum(unit_costs(targets).values())


def test_a_list_takes_names_and_their_ends_and_a_text_is_a_pattern() -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"][1])
    assert [t.name for t in find_targets(model, ["bert.encoder.layer.1.output.dense", "query"])] == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.1.output.dense",
    ]
    assert len(find_targets(model, r".*\.layer\.1\..*(query|value)")) == 2
    # A name's end is a whole part of it: "y" is no module.
    for select in (["y"], ["query", "nothing"], "query", "(", []):
        with pytest.raises(LorankError):
            find_targets(model, select)
    with pytest.raises(LorankError, match="query"):
        find_targets(model, ["qurey"])


def test_excluded_modules_are_those_that_peft_leaves_out() -> None:
    def fresh() -> nn.Module:
        return AutoModelForCausalLM.from_config(ARCHITECTURES["llama"][1])

    for exclude in (["gate_proj"], ["layers.0.self_attn.q_proj", "down_proj"], r".*\.layers\.1\..*"):
        targets = find_targets(fresh(), "all-linear", exclude)
        config = LoraConfig(r=1, target_modules="all-linear", exclude_modules=exclude, task_type="CAUSAL_LM")
        adapted = get_peft_model(fresh(), config).get_base_model()
        theirs = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
        assert [target.name for target in targets] == theirs
    assert find_targets(fresh(), None, ["lm_head"]) == find_targets(fresh())  # no target, and there
    assert find_targets(fresh(), ["q_proj", "k_proj"], ["q_proj"]) == find_targets(fresh(), ["k_proj"])
    assert find_targets(fresh(), None, []) == find_targets(fresh())


@pytest.mark.parametrize(
    ("select", "exclude", "said"),
    [
        (
            None,
            ["gate"],
            r"\['gate'\] match no linear layer \(did you mean gate_proj\?\); linear layers here are named",
        ),
        (None, ["gate_proj", "mlp"], r"'mlp' is a module around .* regular expression: \.\*\\bmlp\\\.\.\*"),
        (None, "gate_proj", r"\['gate_proj'\] match no linear layer"),
        (None, "(", "exclude_modules '\\(' is not a regular expression"),
        (None, ".*", "every target is excluded"),
        (["q_proj"], ["q_proj"], "every target is excluded"),
    ],
)
def test_an_exclusion_that_matches_nothing_or_everything_is_refused(select: Any, exclude: Any, said: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"][1])
    with pytest.raises(TargetError, match=said):
        find_targets(model, select, exclude)


def test_scores_and_plans_say_what_was_excluded() -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"][1])
    scores = lorank.score(model, method="magnitude", exclude_modules=["gate_proj", "up_proj"])
    assert scores.provenance["exclude_modules"] == ["gate_proj", "up_proj"]
    plan = lorank.allocate(scores, "r=2")
    assert plan.spent == 2 * sum(unit_costs(find_targets(model, None, ["gate_proj", "up_proj"])).values())
    plan.check_model(model)
    with pytest.raises(LorankError, match="another model"):
        replace(plan, provenance={**plan.provenance, "exclude_modules": ["gate_proj"]}).check_model(model)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(LorankError, match="no linear layer inside a list of blocks"):
        find_targets(nn.Sequential(nn.Linear(2, 2)))


def test_names_are_those_of_the_model_inside_of_wrappers() -> None:
    def fresh() -> nn.Module:
        return AutoModelForCausalLM.from_config(ARCHITECTURES["llama"][1])

    expected, in_part = find_targets(fresh()), fresh()
    in_part.model.layers[0] = torch.compile(in_part.model.layers[0])
    in_part.model.layers[1].mlp = nn.DataParallel(in_part.model.layers[1].mlp)
    both = nn.DataParallel(torch.compile(fresh()))
    for model in (
        torch.compile(fresh()),
        nn.DataParallel(fresh()),
        torch.compile(nn.DataParallel(fresh())),
        both,
        in_part,
    ):
        assert find_targets(model) == expected
        assert find_targets(model, ["q_proj"]) == tuple(t for t in expected if t.name.endswith("q_proj"))
    assert type(unwrapped(both)) is type(unwrapped(in_part)) is type(fresh())
    with pytest.warns(LorankWarning, match="the model is wrapped"):
        plan = lorank.allocate(lorank.score(both, method="magnitude"), "r=2")
    plan.check_model(unwrapped(both))
    adapted = get_peft_model(fresh(), plan.lora_config(task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == plan.spent


@pytest.mark.parametrize(
    ("family", "config", "unit"),
    [
        # The papers' own arithmetic: 0.33M at rank 2 on DeBERTaV3-base, 8.8M at rank 16 on Qwen2.5-0.5B.
        (
            AutoModelForSequenceClassification,
            DebertaV2Config(num_hidden_layers=12, hidden_size=768, intermediate_size=3072, vocab_size=64),
            165_888,
        ),
        (
            AutoModelForCausalLM,
            Qwen2Config(
                hidden_size=896,
                intermediate_size=4864,
                num_hidden_layers=24,
                num_attention_heads=14,
                num_key_value_heads=2,
                vocab_size=64,
            ),
            549_888,
        ),
    ],
    ids=["deberta-v3-base", "qwen2.5-0.5b"],
)
def test_published_budgets_are_what_they_say(family, config, unit: int) -> None:
    with torch.device("meta"):
        targets = find_targets(family.from_config(config))
    assert sum(unit_costs(targets).values()) == unit
