"""Every form under every engine's rule; and the obvious forms, which fail where the engines' sources say that they fail."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from tests.serving.adapters import PROJECTIONS, adapters, llama_layers, make_adapter, uniform

from lorank.errors import AdapterError
from lorank.serving import names
from lorank.serving.adapter_files import AdapterFiles, LoraPair
from lorank.serving.engines import ENGINES, NEED_BASE, VLLM_RANKS, stackable_rank, vllm_rank
from lorank.serving.forms import FORMS
from lorank.serving.handover import SEED_ADAPTER, TOOLS
from lorank.serving.verify import engine_verdicts

BASE = llama_layers()
PROMISED = {
    "any": set(ENGINES),
    "vllm": {"peft", "vllm", "vllm-0.31"},
    "llama.cpp": {"peft", "vllm", "llama.cpp", "ollama", "tensorrt-llm"},
    "peft": {"peft", "vllm"},
}


def right(adapter: AdapterFiles, trained: AdapterFiles | None = None) -> set[str]:
    return {verdict.engine for verdict in engine_verdicts(adapter, trained, BASE) if verdict.right}


def dense(adapter: AdapterFiles, scales: dict[str, float]) -> dict[str, torch.Tensor]:
    return {m: s * adapter.pairs[m].b.double() @ adapter.pairs[m].a.double() for m, s in scales.items()}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(trained=adapters())
def test_a_form_is_right_in_the_engines_that_it_is_for(form: str, trained: AdapterFiles) -> None:
    served = FORMS[form](trained, BASE)
    assert served.dtype == trained.dtype
    assert PROMISED[form] <= right(served, trained)


@settings(max_examples=40, deadline=None)
@given(trained=adapters())
def test_the_default_form_errs_by_less_than_one_ulp_of_b(trained: AdapterFiles) -> None:
    """Element by element, against the dense product, and with no help from what `verify` calls right."""
    served, scales = FORMS["any"](trained, BASE), trained.peft_scales()
    wanted = dense(trained, scales)
    for _, rule in ENGINES.values():
        loading = rule(served, BASE)
        assert not loading.refused
        found = dense(served, dict(loading.scales))
        for module, update in found.items():
            if module not in wanted:
                assert not update.any()
                continue
            pair = trained.pairs[module]
            one_ulp = (
                torch.finfo(trained.dtype).eps * abs(scales[module]) * pair.b.double().abs() @ pair.a.double().abs()
            )
            least = torch.finfo(trained.dtype).smallest_normal * pair.a.double().abs().sum(0)
            assert ((update - wanted[module]).abs() <= one_ulp + least + 1e-12).all()
        assert set(wanted) <= set(found)


def test_the_default_form_is_the_one_that_no_engine_can_read_otherwise() -> None:
    trained = make_adapter({"model.layers.1.self_attn.q_proj": 3, "model.layers.0.mlp.up_proj": 10}, 7.0)
    served = FORMS["any"](trained, BASE)
    config = served.config
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (16, 16, {}, {})
    assert isinstance(config["lora_alpha"], int)  # Ollama reads an unsigned integer
    assert (config["use_rslora"], config["use_dora"], config["bias"], config["modules_to_save"]) == (
        False,
        False,
        "none",
        None,
    )
    # q and up in every layer, and what SGLang joins with them
    expected = {f"model.layers.{k}.self_attn.{p}" for k in range(3) for p in ("q_proj", "v_proj")}
    expected |= {f"model.layers.{k}.mlp.{p}" for k in range(3) for p in ("up_proj", "gate_proj")}
    assert set(served.pairs) == expected
    assert {pair.rank for pair in served.pairs.values()} == {16}


MIXED = {name: 2 + 2 * (number % 3) for number, name in enumerate(BASE.shapes) if name != "lm_head"}


def test_ranks_by_pattern_alone_fail_where_the_config_or_one_stack_counts() -> None:
    """Alpha over each module's own rank: the form of a plain LoraConfig with a rank_pattern."""
    assert right(make_adapter(MIXED, 16)) == PROMISED["llama.cpp"]


def test_a_constant_scale_by_patterns_fails_where_the_tensors_own_rank_counts() -> None:
    """EVA's form, and the one that lorank trains: alpha follows the rank."""
    trained = make_adapter(MIXED, {name: 2 * rank for name, rank in MIXED.items()})
    assert right(trained) == {"peft", "vllm", "vllm-0.31"}
    errors = {v.engine: v.error for v in engine_verdicts(trained, None, BASE)}
    assert errors["llama.cpp"] == errors["tensorrt-llm"] == pytest.approx(2.0)  # 12 / 2 in place of 2


def test_a_folded_compact_form_fails_outside_of_vllm_and_peft() -> None:
    trained = make_adapter(MIXED, {name: 2 * rank for name, rank in MIXED.items()})
    served = FORMS["vllm"](trained)
    assert right(served, trained) == {"peft", "vllm", "vllm-0.31"}
    verdicts = {verdict.engine: verdict for verdict in engine_verdicts(served, trained, BASE)}
    assert "rank_pattern" in verdicts["sglang"].why
    assert verdicts["tgi"].error is not None


@pytest.mark.parametrize("rank", [8, 16, 48])
def test_a_uniform_adapter_of_a_stackable_rank_is_right_everywhere(rank: int) -> None:
    assert right(uniform(rank, 16)) == set(ENGINES)


def test_tgi_scales_all_but_the_first_projection_by_the_padded_rank() -> None:
    adapter = uniform(4, 8)
    assert right(adapter) == set(ENGINES) - {"tgi"}
    scales = ENGINES["tgi"][1](adapter, BASE).scales
    assert {scales[m] for m in scales if m.endswith("q_proj")} == {2.0}
    assert {scales[m] for m in scales if not m.endswith("q_proj")} == {1.0}


def test_tgi_leaves_out_a_projection_that_one_layer_lacks() -> None:
    ranks = {name: 8 for name in BASE.shapes if name != "lm_head" and name != "model.layers.2.mlp.down_proj"}
    for base in (BASE, None):
        scales = ENGINES["tgi"][1](make_adapter(ranks, 8), base).scales
        assert {m.rpartition(".")[2] for m in ranks} - {m.rpartition(".")[2] for m in scales} == {"down_proj"}
    (verdict,) = engine_verdicts(make_adapter(ranks, 8), None, BASE, ["tgi"])
    assert not verdict.right
    assert "2 of 20 modules are served without their update" in verdict.why


def test_tgi_cannot_stack_ranks_that_pad_differently() -> None:
    ranks = {name: 8 for name in BASE.shapes if name != "lm_head"} | {"model.layers.1.self_attn.q_proj": 9}
    assert "q_proj have different ranks" in ENGINES["tgi"][1](make_adapter(ranks, 8), BASE).refused


def test_rslora_is_read_by_some_only() -> None:
    assert right(uniform(16, 8, use_rslora=True)) == {"peft", "vllm", "vllm-0.31", "tgi", "tensorrt-llm"}


@pytest.mark.parametrize(
    ("engine", "adapter", "reason"),
    [
        ("vllm", uniform(513), "above the largest --max-lora-rank, 512"),
        ("vllm-0.31", uniform(8, modules_to_save=["classifier"]), "modules trained whole"),
        ("vllm", uniform(8, modules_to_save=["lm_head"]), "classifier or score only"),
        ("sglang", uniform(8, alpha_pattern={"q_proj": 4}), "alpha_pattern has values other than lora_alpha"),
        ("sglang", uniform(8, target_modules=".*q_proj"), "must be a list"),
        ("sglang", make_adapter({"model.layers.0.self_attn.q_proj": 8}, 8), "v_proj"),
        ("tensorrt-llm", make_adapter({"lm_head": 8}, 8), "not among the modules"),
        ("ollama", uniform(8, 16.0), "whole number"),
    ],
)  # fmt: skip
def test_refusals(engine: str, adapter: AdapterFiles, reason: str) -> None:
    assert reason in ENGINES[engine][1](adapter, BASE).refused


def test_sglang_drops_keys_and_ups_without_the_first_of_their_group() -> None:
    ranks = {
        "model.layers.0.self_attn.k_proj": 8,
        "model.layers.0.mlp.up_proj": 8,
        "model.layers.0.self_attn.o_proj": 8,
    }
    assert set(ENGINES["sglang"][1](make_adapter(ranks, 8), BASE).scales) == {"model.layers.0.self_attn.o_proj"}


def test_an_alpha_of_zero_is_a_scale_of_one_in_llama_cpp() -> None:
    adapter = uniform(8, 0)
    assert set(ENGINES["llama.cpp"][1](adapter, BASE).scales.values()) == {1.0}
    assert "llama.cpp" not in right(adapter)


def test_ollama_reads_adapters_of_few_models() -> None:
    class Qwen:
        model_type = "qwen2"

    assert "qwen2" in ENGINES["ollama"][1](uniform(8, 8), replace(BASE, config=Qwen())).refused


def test_peft_leaves_out_tensors_that_target_modules_does_not_match() -> None:
    adapter = uniform(8, 8, target_modules=["q_proj"])
    assert {m.rpartition(".")[2] for m in ENGINES["peft"][1](adapter, BASE).scales} == {"q_proj"}
    (verdict,) = engine_verdicts(adapter, None, BASE, ["peft"])
    assert "served without their update" in verdict.why


def test_a_head_is_lost_or_refused_where_heads_are_not_loaded() -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 8)}
    adapter = replace(uniform(8, 8, modules_to_save=["score"]), saved_modules=head)
    assert right(adapter) == {"peft", "vllm"}
    assert any("score" in verdict.why for verdict in engine_verdicts(adapter, None, BASE) if verdict.engine == "tgi")
    assert right(replace(adapter, saved_modules={}), adapter) == set()  # the head was trained and is not there


def test_ranks_that_engines_allow() -> None:
    assert [stackable_rank(rank) for rank in (1, 8, 9, 16, 17, 40)] == [8, 8, 16, 16, 32, 48]
    assert [vllm_rank(rank) for rank in (1, 2, 9, 300, 512, 513)] == [1, 8, 16, 320, 512, None]
    assert all(vllm_rank(allowed) == allowed for allowed in VLLM_RANKS)


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(AdapterError, match=r"'vlm' is unknown \(did you mean vllm\?\)"):
        engine_verdicts(uniform(8), None, BASE, ["vlm"])


def test_another_adapter_is_seen_as_wrong_and_another_model_is_refused() -> None:
    other = make_adapter(dict.fromkeys((n for n in BASE.shapes if n != "lm_head"), 8), 16, seed=1)
    assert right(uniform(8, 16), other) == set()
    (verdict,) = engine_verdicts(uniform(8, 16), other, BASE, ["peft"])
    assert verdict.error is not None
    assert math.isfinite(verdict.error)
    assert set(PROJECTIONS) >= {verdict.worst.rpartition(".")[2]}
    moved = {name: replace(pair, a=pair.a[:, :4]) for name, pair in other.pairs.items()}
    with pytest.raises(AdapterError, match="different models"):
        engine_verdicts(uniform(8, 16), replace(other, pairs=moved))


def test_tensors_that_peft_did_not_name() -> None:
    plain = uniform(8, 8)
    assert right(replace(plain, prefixed=False)) == set(ENGINES) - {"peft", "tgi"}
    assert right(replace(plain, named=True)) == {"peft", "sglang"}


def test_layers_and_vocabularies_that_llama_cpp_stores_otherwise() -> None:
    adapter = make_adapter({"lm_head": 8}, 8)
    tied = replace(BASE, tied_output="lm_head")
    assert "shares the input embedding" in ENGINES["llama.cpp"][1](adapter, tied).refused
    assert not ENGINES["llama.cpp"][1](adapter, BASE).refused
    turned = replace(BASE, transposed=frozenset({"model.layers.0.mlp.up_proj"}))
    assert "Conv1D" in ENGINES["llama.cpp"][1](uniform(8, 8), turned).refused


def test_experts_of_different_ranks_cannot_be_stacked() -> None:
    names = [f"model.layers.0.mlp.experts.{k}.up_proj" for k in range(3)]
    shapes = {**BASE.shapes, **dict.fromkeys(names, (12, 8))}

    def experts(ranks: tuple[int, ...]) -> AdapterFiles:
        pairs = {
            name: LoraPair(torch.ones(rank, 8), torch.ones(12, rank)) for name, rank in zip(names, ranks, strict=True)
        }
        pattern = {f"^{name}$": rank for name, rank in zip(names, ranks, strict=True)}
        return replace(uniform(8, 8, rank_pattern=pattern, target_modules=names), pairs=pairs)

    for engine in ("vllm", "llama.cpp", "tensorrt-llm"):
        assert "experts are stacked" in ENGINES[engine][1](experts((2, 4, 4)), None).refused
        assert not ENGINES[engine][1](experts((4, 4, 4)), None).refused
    served = FORMS["any"](experts((2, 4, 4)), replace(BASE, shapes=shapes))
    assert {pair.rank for pair in served.pairs.values()} == {8}
    assert not ENGINES["vllm"][1](served, None).refused


def test_what_depends_on_the_base_model_is_unknown_without_it() -> None:
    answers = {verdict.engine: verdict.answer for verdict in engine_verdicts(uniform(8, 8))}
    assert {engine for engine, answer in answers.items() if answer == "unknown"} == NEED_BASE
    assert {engine for engine, answer in answers.items() if answer == "right"} == set(ENGINES) - NEED_BASE


def test_modules_of_one_adapter_only_are_called_that() -> None:
    served, trained = make_adapter(dict.fromkeys(MIXED, 8), 8), make_adapter({"lm_head": 8}, 8)
    (verdict,) = engine_verdicts(served, trained, BASE, ["peft"])
    assert verdict.why.startswith(
        "only the trained adapter has 1 modules, lm_head first; only this adapter has 21 modules"
    )


def test_names_on_the_command_line_are_the_ones_that_there_are() -> None:
    assert tuple(ENGINES) == names.ENGINES
    assert tuple(FORMS) == names.FORMS
    assert (*TOOLS, SEED_ADAPTER) == names.TOOLS
