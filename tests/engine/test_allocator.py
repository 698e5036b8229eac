"""The allocation of one adapter, fed with given weights and gradients: against PEFT's allocator, and against the codes' rules."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.tuners.adalora import RankAllocator
from tests.conftest import tiny_config
from torch.optim import AdamW
from transformers import BertForSequenceClassification, set_seed

from lorank.adapter.convert import to_triplets
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.budget import Budget
from lorank.engine.allocator import Allocator
from lorank.engine.assembly import TrainingFacts, make_allocator
from lorank.engine.cut_rules import CutRules
from lorank.engine.initial_adapter import read_adapter
from lorank.errors import TrainingError
from lorank.methods.choose import choose_options

TARGETS, RANK = ["query", "value", "intermediate.dense"], 4


def triplets(rank: int = RANK, initial_lambda: float = 0.0) -> tuple[Any, TripletAdapter]:
    set_seed(0)
    base = BertForSequenceClassification(tiny_config()).double()
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)).double()
    return model, to_triplets(model, "default", initial_lambda=initial_lambda)


def allocator(
    model: Any,
    adapter: TripletAdapter,
    method: str,
    schedule: CutSchedule,
    budget: str,
    *,
    may_shrink: bool = True,
    **options: Any,
) -> Allocator:
    choices = choose_options(method, options.pop("preset", None), options).choices
    layers = dict(zip(adapter.names, adapter.layers, strict=True))
    initial = read_adapter(model, layers, "default", Budget.parse(budget), choices, {})
    made = make_allocator(adapter, initial, choices, TrainingFacts(10_000, 1, may_shrink=may_shrink))
    made.rules = CutRules(initial, choices, schedule)
    made.schedule = schedule
    return made


def draw(adapter: TripletAdapter, step: int) -> None:
    """New weights (but for those that are zero) and gradients, from the number of the step alone."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for number, factor in enumerate(adapter.factors("all")):
            size = 0.1 + number % 7
            factor.add_(torch.randn(factor.shape, generator=generator, dtype=factor.dtype) * 0.3)
            factor.grad = torch.randn(factor.shape, generator=generator, dtype=factor.dtype) * size


def test_adalora_is_pefts_rank_allocator() -> None:
    """Same weights and gradients: same sensitivities, same curve, same triplets, at every step."""
    total, tinit, tfinal, interval = 30, 4, 8, 3
    model, adapter = triplets()
    config = AdaLoraConfig(
        init_r=RANK, target_r=2, tinit=tinit, tfinal=tfinal, deltaT=interval, total_step=total, target_modules=TARGETS
    )
    set_seed(0)
    theirs = get_peft_model(BertForSequenceClassification(tiny_config()).double(), config).double()
    modules = dict(theirs.get_base_model().named_modules())
    layers = [modules[name] for name in adapter.names]
    peft_allocator: RankAllocator = theirs.base_model.rankallocator
    schedule = CutSchedule(tinit, total - tfinal, interval)
    ours = allocator(model, adapter, "adalora", schedule, "r=2", preset="paper", orthogonality=0.0)
    smoothed, cuts = ours.smoother, 0
    for step in range(1, total - tfinal + 1):
        draw(adapter, step)
        for layer, values, p, q in zip(layers, adapter.lambdas, adapter.p, adapter.q, strict=True):
            pairs = ((layer.lora_E, values), (layer.lora_B, p), (layer.lora_A, q))
            for held, factor in pairs:
                parameter = held["default"]
                parameter.data.copy_(factor.data.reshape(parameter.shape))
                parameter.grad = factor.grad.reshape(parameter.shape).clone()
        if step == total - tfinal:
            mean = {n: t.clone() for n, t in peft_allocator.exp_avg_ipt.items()}
            for number, name in enumerate(adapter.names):
                key = next(key for key in mean if key.endswith(f"{name}.lora_E.default"))
                assert torch.allclose(mean[key].flatten(), smoothed.mean[number])
        theirs.base_model.update_and_allocate(step)
        masked = [layer.lora_E["default"].flatten() == 0 for layer in layers]
        units = dict(ours.units)
        ours.before_step(step)
        logged = ours.after_step(step, None)
        if logged is None:
            assert not any(mask.any() for mask in masked)
            continue
        cuts += 1
        if ours.finished is None:
            assert all(torch.equal(values == 0, mask) for values, mask in zip(adapter.lambdas, masked, strict=True))
        else:
            for name, mask in zip(adapter.names, masked, strict=True):
                assert ours.units[name].tolist() == units[name][~mask.numpy()].tolist()
    assert cuts == 7
    assert ours.finished == total - tfinal
    assert sum(adapter.ranks) == 2 * len(adapter.names)


def official_mask(
    state: dict[str, Any], weights: list[torch.Tensor], gradients: list[torch.Tensor], costs: list[float], budget: float
) -> list[torch.Tensor]:
    """IGU-LoRA's code, written down anew: which λ stay, module by module."""
    count, scores = len(costs), []
    for number, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        ipt = (w * g).abs()
        mean = state[f"mean{number}"] = 0.85 * state.get(f"mean{number}", 0.0) + 0.15 * ipt
        unsure = state[f"unsure{number}"] = 0.85 * state.get(f"unsure{number}", 0.0) + 0.15 * (ipt - mean).abs()
        scores.append((mean + 1e-6) / (unsure + 1e-6))
    units = [scores[m] + scores[count + m].mean(0) + scores[2 * count + m].mean(1) for m in range(count)]
    flat = sorted((float(score), m, i) for m, unit in enumerate(units) for i, score in enumerate(unit))
    removed, total = 0.0, sum(cost * len(unit) for cost, unit in zip(costs, units, strict=True))
    kept = [torch.ones(len(unit), dtype=torch.bool) for unit in units]
    for _, m, i in flat:
        if removed >= total - budget:
            break
        kept[m][i] = False
        removed += costs[m]
    return kept


@pytest.mark.parametrize("weight", [1.0, 3.21])
def test_igu_lora_official_is_its_codes_rule(weight: float) -> None:
    """Entry ratios, λ's too, every step from new weights and gradients; cubic curve; cost weighting of MLP triplets."""
    model, adapter = triplets(initial_lambda=0.1)
    schedule = CutSchedule(3, 20, 2)
    weights = {"intermediate.dense": weight} if weight != 1 else {}
    ours = allocator(
        model, adapter, "igu-lora", schedule, "r=2", preset="official", cost_weights=weights, orthogonality=0.0
    )
    costs = [weight if "intermediate" in name else 1.0 for name in adapter.names]
    start = RANK * sum(costs)
    state: dict[str, Any] = {}
    for step in range(1, 20):
        draw(adapter, step)
        given = [f.detach().clone() for f in adapter.factors("all")], [f.grad.clone() for f in adapter.factors("all")]
        left = max(0.0, 1 - max(0, step - 3) / 17)
        kept = official_mask(state, *given, costs, int(start / 2 + start / 2 * left**3 + 1e-9))
        ours.before_step(step)
        logged = ours.after_step(step, None)
        assert (logged is not None) == (step > 3 and step % 2 == 0)
        if logged is not None:
            for values, mask in zip(adapter.lambdas, kept, strict=True):
                assert torch.equal(values != 0, mask), step


def test_weights_and_gradient_of_one_moment_or_those_after_the_step() -> None:
    for measured in ("before-step", "after-step"):
        model, adapter = triplets()
        ours = allocator(
            model,
            adapter,
            "adalora",
            CutSchedule(1, 9, 1),
            "r=2",
            preset="recommended",
            measured=measured,
            orthogonality=0.5,
        )
        draw(adapter, 1)
        before = torch.cat([v.detach() * v.grad for v in adapter.lambdas])
        optimizer = AdamW(adapter.factors("all"), lr=0.1)
        ours.before_step(1)
        optimizer.step()
        after = torch.cat([v.detach() * v.grad for v in adapter.lambdas])
        ours.after_step(1, optimizer)
        expected = before if measured == "before-step" else after
        assert torch.allclose(ours.smoother.mean[0], 0.15 * expected.abs())


def test_skipped_steps_do_not_count() -> None:
    """fp16's GradScaler skips a step whose gradients overflow: not measured, not cut."""
    model, adapter = triplets()
    ours = allocator(model, adapter, "adalora", CutSchedule(1, 9, 1), "r=2", preset="recommended")
    for step in range(1, 5):
        draw(adapter, step)
        if step == 3:
            adapter.lambdas[0].grad.fill_(float("inf"))
        ours.before_step(step)
        assert (ours.after_step(step, None, skipped=step == 3) is None) == (step in (1, 3))
    assert ours.measured == 3
    assert torch.isfinite(ours.smoother.mean[0]).all()


@pytest.mark.parametrize("state", ["element", "triplet"])
def test_cutting_tensors_at_every_cut_keeps_the_right_state(state: str) -> None:
    """The EMAs of what is left are those that they would be without the cuts."""
    model, adapter = triplets()
    ours = allocator(
        model, adapter, "adalora", CutSchedule(1, 9, 1), "r=1", preset="recommended", state=state, shrink="every"
    )
    whole_model, whole = triplets()
    theirs = allocator(whole_model, whole, "adalora", CutSchedule(8, 9, 1), "r=1", preset="recommended", state=state)
    for step in range(1, 9):
        draw(whole, step)
        with torch.no_grad():
            for layer, large in zip(adapter.layers, whole.layers, strict=True):
                index = torch.from_numpy(ours.units[adapter.names[adapter.layers.index(layer)]])
                for small, factor, dim in zip(
                    layer.factors_of("default"), large.factors_of("default"), (0, 0, 1), strict=True
                ):
                    small.copy_(factor.index_select(dim, index))
                    small.grad = factor.grad.index_select(dim, index)
        for one in (ours, theirs):
            one.before_step(step)
            one.after_step(step, None)
        for name, mine, all_units in zip(adapter.names, _units(ours), _units(theirs), strict=True):
            assert np.allclose(mine, all_units[ours.units[name]])
    assert sum(adapter.ranks) < sum(whole.ranks)


def _units(one: Allocator) -> list[np.ndarray]:
    return list(one._unit_scores(0).values())


@pytest.mark.parametrize("method", ["igu-lora", "adalora"])
def test_state_goes_on_exactly(method: str) -> None:
    options = {"preset": "official"} if method == "igu-lora" else {"state": "triplet", "window": 2}
    model, adapter = triplets()
    first = allocator(model, adapter, method, CutSchedule(2, 12, 3), "r=2", **options)
    for step in range(1, 8):
        draw(adapter, step)
        first.before_step(step)
        first.after_step(step, None)
    second = allocator(*_copied(model), method, CutSchedule(2, 12, 3), "r=2", **options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(8, 14):
        for one in (first, second):
            draw(one.adapter, step)
            one.before_step(step)
            one.after_step(step, None)
    assert first.finished == second.finished == 12
    scores, plan = first.finish(13, None)
    again, same = second.finish(13, None)
    assert scores.fingerprint == again.fingerprint
    assert plan == same


def _copied(model: Any) -> tuple[Any, TripletAdapter]:
    copied = copy.deepcopy(model)
    return copied, TripletAdapter.of(copied)


def test_the_state_of_another_allocation_is_refused() -> None:
    model, adapter = triplets()
    first = allocator(model, adapter, "adalora", CutSchedule(2, 12, 3), "r=2")
    for other in (
        allocator(model, adapter, "adalora", CutSchedule(2, 11, 3), "r=2"),
        allocator(model, adapter, "adalora", CutSchedule(2, 12, 3), "r=1"),
        allocator(model, adapter, "adalora", CutSchedule(2, 12, 3), "r=2", score="mean"),
    ):
        with pytest.raises(TrainingError, match="another allocation"):
            other.load_state_dict(first.state_dict())


def test_nothing_passes_for_an_allocation_that_is_none() -> None:
    model, adapter = triplets()
    ours = allocator(model, adapter, "adalora", CutSchedule(1, 9, 1), "r=2")
    ours.before_step(1)
    with pytest.raises(TrainingError, match="no triplet has a gradient at step 1"):
        ours.after_step(1, None)
    with pytest.raises(TrainingError, match="before there was anything to allocate by"):
        ours.finish(5, None)
    for value, step, said in ((0.0, 9, "every score is 0"), (float("nan"), 5, "not finite")):
        ours = allocator(*triplets(), "adalora", CutSchedule(4, 9, 5), "r=2")
        for number in range(1, step):
            for factor in ours.adapter.factors("all"):
                factor.grad = torch.full_like(factor, value)
            ours.after_step(number, None)  # zero scores are no reason to cut, before the last cut
        assert sum(ours.adapter.ranks) == RANK * len(ours.adapter.names)
        with pytest.raises(TrainingError, match=said):
            ours.after_step(step, None)


def test_a_module_without_gradient_scores_zero() -> None:
    """An expert that no token went to, for example."""
    model, adapter = triplets()
    ours = allocator(model, adapter, "adalora", CutSchedule(0, 9, 1), "r=2", state="element")
    draw(adapter, 1)
    for factor in (adapter.lambdas[0], adapter.p[0], adapter.q[0]):
        factor.grad = None
    ours.before_step(1)
    ours.after_step(1, None)
    assert not ours.scores[adapter.names[0]].any()
    assert ours.scores[adapter.names[1]].all()


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ("200", {}),
        ("r=2", {}),
        ("1%", {}),
        ("r=2", {"preset": "paper"}),
        ("333", {"preset": "paper"}),
        ("rank=11", {"preset": "paper"}),
    ],
)
def test_the_last_cut_is_within_the_budget(budget: str, options: dict[str, Any]) -> None:
    model, adapter = triplets()
    ours = allocator(model, adapter, "adalora", CutSchedule(1, 5, 1), budget, **{"preset": "recommended", **options})
    for step in range(1, 6):
        draw(adapter, step)
        ours.before_step(step)
        ours.after_step(step, None)
    _, plan = ours.finish(5, None)
    assert dict(zip(adapter.names, adapter.ranks, strict=True)) == plan.ranks
    if budget == "rank=11":
        assert plan.total_rank == 11
    elif budget == "r=2" and options:
        assert plan.total_rank == 2 * len(adapter.names)
    else:
        assert ours.initial.parameters - 48 < plan.spent <= ours.initial.parameters


def test_masking_stands_in_for_shrinking_where_tensors_must_stay() -> None:
    """With several processes: λ of what was cut is zero after every step, and the tensors shrink at the end."""
    model, adapter = triplets()
    schedule = CutSchedule(1, 4, 1)
    ours = allocator(model, adapter, "adalora", schedule, "r=2", preset="recommended", may_shrink=False)
    for step in range(1, 7):
        draw(adapter, step)
        ours.before_step(step)
        ours.after_step(step, None)
        assert set(adapter.ranks) == {RANK}
        if step >= 4:
            spent = sum(
                int(values.count_nonzero()) * ours.initial.costs[n]
                for n, values in zip(adapter.names, adapter.lambdas, strict=True)
            )
            assert spent <= ours.initial.parameters
    _, plan = ours.finish(6, None)
    assert dict(zip(adapter.names, adapter.ranks, strict=True)) == plan.ranks
    assert all(values.all() for values in adapter.lambdas)
