"""Scores of the parameters of fused experts, against gradients that are taken by hand."""

import copy
from typing import Any

import pytest
import torch
from tests.expert_models import batches, make
from transformers import MixtralConfig, MixtralForCausalLM, set_seed

import lorank
from lorank.errors import LorankWarning
from lorank.scoring.calibration import calibrate
from lorank.scoring.expert_gradients import gradients_of_experts
from lorank.targets import find_targets

FISHER = {"method": "sensitivity-lora", "preset": "paper", "topk_weight": 0.0, "effective_rank_weight": 0.0}


def by_hand(model: Any, name: str, squared: bool) -> float:
    """Of every example's own gradient the sum of its squares, or the mean of `|w · g|`; over the targets of all examples."""
    total, targets = 0.0, 0
    for batch in batches(3, 2):
        for row in range(len(batch["input_ids"])):
            model.zero_grad()
            one = {key: value[row : row + 1] for key, value in batch.items()}
            count = one["labels"].shape[1] - 1
            (count * model(**one).loss).backward()
            weight = model.get_parameter(name)
            of_weights = weight.grad.square().sum() if squared else (weight * weight.grad).abs().mean()
            total, targets = total + float(of_weights), targets + count
    model.zero_grad()
    return total / targets


@pytest.mark.parametrize("layout", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("method", ["gradient", "fisher"])
def test_scores_are_of_the_gradients_of_single_examples(layout: str, method: str) -> None:
    model = make(layout)
    options: dict[str, Any] = {"method": "gradient"} if method == "gradient" else FISHER
    scores = lorank.score(model, batches(3, 2), targets=[], target_parameters="all-experts", **options)
    expected = {name: by_hand(model, name, squared=method == "fisher") for name in scores.scores}
    mean = (
        sum(expected.values()) / len(expected) if method == "fisher" else 1.0
    )  # metrics are on the scale of their mean
    for name, values in scores.scores.items():
        assert float(values[0]) == pytest.approx(expected[name] / mean, rel=1e-4)
    assert scores.max_ranks == {name: 16 if "gate_up" in name else 12 for name in scores.scores}


def test_sums_by_column_are_those_of_the_stored_orientation() -> None:
    for layout in ("mixtral", "gpt-oss"):
        model = make(layout)
        targets = find_targets(model, [], target_parameters=["experts.gate_up_proj"])
        sums = calibrate(model, targets, batches(1), "fisher", folds=2)
        batch = batches(1)[0]
        model(**batch).loss.mul(batch["labels"].shape[1] - 1).backward()
        for target in targets:
            gradient = model.get_parameter(target.name).grad
            assert gradient is not None
            expected = gradient.square().sum((0, 2) if target.transposed else (0, 1))
            torch.testing.assert_close(sums.columns[target.name][0], expected, rtol=1e-4, atol=1e-9)


def test_layers_beside_experts_score_as_without_them() -> None:
    alone, beside = (
        lorank.score(make("qwen3-moe"), batches(3, 2), "gradient", targets=["o_proj"], target_parameters=chosen)
        for chosen in (None, ["experts.down_proj"])
    )
    for name, values in alone.scores.items():
        assert float(beside.scores[name][0]) == pytest.approx(float(values[0]), rel=1e-4)
    assert "a parameter of experts" in beside.provenance["one_example_at_a_time"]


def test_experts_without_tokens_score_zero_and_no_nan() -> None:
    model: Any = make("mixtral")
    with torch.no_grad():  # the router sends everything to the first two experts
        for block in model.model.layers:
            block.mlp.gate.weight.zero_()
            block.mlp.gate.weight[:2].copy_(10 * torch.ones(2, 16))
            block.input_layernorm.weight.fill_(1.0)
    targets = find_targets(model, [], target_parameters="all-experts")
    seen: dict[str, torch.Tensor] = {}

    def keep(target: Any, gradient: torch.Tensor, _: torch.Tensor) -> None:
        seen[target.name] = gradient.clone()

    with gradients_of_experts(model, targets, keep):
        model(**batches(1, tokens=3)[0]).loss.backward()
    assert len(seen) == len(targets)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in seen.values())
    assert any(not bool(gradient[expert].any()) for gradient in seen.values() for expert in range(4))
    with pytest.warns(LorankWarning, match="the scores are of a single example"):
        scores = lorank.score(model, batches(1, tokens=3), "gradient", targets=[], target_parameters="all-experts")
    assert all(float(values[0]) > 0 for values in scores.scores.values())


def test_the_model_is_left_as_it_was() -> None:
    model = make("qwen3-moe")
    name = "model.layers.0.mlp.experts.down_proj"
    parameter = model.get_parameter(name)
    parameter.grad = kept = torch.ones_like(parameter)
    model.get_parameter("model.layers.1.mlp.experts.down_proj").requires_grad_(False)
    before = {key: (value.clone(), value.requires_grad) for key, value in model.named_parameters()}
    lorank.score(model, batches(2), "gradient", target_parameters=["experts.down_proj"], targets=[])
    assert parameter.grad is kept
    assert bool((kept == 1).all())
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key][0])
        assert value.requires_grad == before[key][1]
        assert key == name or value.grad is None


def planted(base: Any, layer: int, ids: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Examples labelled by the model with another `ΔW` of rank 1 in one expert of a layer."""
    changed = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        weight = changed.get_parameter(f"model.layers.{layer}.mlp.experts.down_proj")
        weight[2] += 4 * torch.outer(torch.randn(16), torch.randn(16))
        answers = changed(input_ids=ids).logits.argmax(-1)
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = answers[:, :-1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_layer_of_a_planted_expert_gets_more_rank_than_when_it_is_elsewhere(seed: int) -> None:
    set_seed(seed)
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=4, num_experts_per_tok=1, initializer_range=0.25,
    )  # fmt: skip
    base = MixtralForCausalLM(config).eval()
    ids = torch.randint(0, 32, (24, 12))
    names = {layer: f"model.layers.{layer}.mlp.experts.down_proj" for layer in (1, 3)}
    ranks, shares = {}, {}
    for layer in names:
        rows = [planted(base, layer, ids, seed + 10)]
        scores = lorank.score(base, rows, targets=[], target_parameters=["experts.down_proj"], **FISHER)
        plan = lorank.allocate(scores, "r=6", max_rank=16)
        ranks[layer] = {other: plan.ranks[name] for other, name in names.items()}
        shares[layer] = float(scores.scores[names[1]][0] / scores.scores[names[3]][0])
    assert shares[1] > shares[3]
    assert ranks[1][1] > ranks[3][1]
    assert ranks[3][3] > ranks[1][3]
