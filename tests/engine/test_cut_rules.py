"""What the last cut says about its budget."""

import numpy as np
import pytest

from lorank.allocation.schedule import CutSchedule
from lorank.engine.cut_rules import CutRules, InitialAdapter, unit_weights
from lorank.errors import LorankError, LorankWarning
from lorank.methods.choose import choose_options

RANKS, COSTS = {"wide": 4, "narrow": 4}, {"wide": 30, "narrow": 10}
ALIVE = {"wide": np.array([9.0, 8.0, 7.0, 6.0]), "narrow": np.array([1.0, 2.0, 3.0, 4.0])}


def rules(budget: str, parameters: int, method: str = "adalora", preset: str = "paper", **options) -> CutRules:
    choices = choose_options(method, preset, options).choices
    limits = choices.ranks.model_dump()
    return CutRules(InitialAdapter(RANKS, COSTS, budget, parameters, limits, 2.0, {}), choices, CutSchedule(0, 4, 1))


def test_a_budget_in_ranks_says_units_where_these_cost_more_than_its_mean() -> None:
    plan = rules("rank=4", 80).last_plan(ALIVE)
    assert (plan.ranks, plan.spent, plan.budget_units) == ({"wide": 4, "narrow": 0}, 120, 4)
    assert plan.spending == "4 units of rank (4 asked for), 120 parameters"
    assert plan.budget_parameters == 120  # what baselines then get


@pytest.mark.parametrize(
    ("values", "ranks", "spent"),
    [
        # By hand, best first: wide 30, 60, then the third is too dear (90 > 80), narrow 70, 80.
        (ALIVE, {"wide": 2, "narrow": 2}, 80),
        # The best four units are cheap and cost 40 together, where 80 was asked for: one wide unit more is paid for.
        ({"wide": ALIVE["narrow"], "narrow": ALIVE["wide"]}, {"wide": 1, "narrow": 4}, 70),
    ],
)
@pytest.mark.parametrize(("method", "preset"), [("adalora", "paper"), ("igu-lora", "paper")])
def test_a_budget_in_parameters_is_spent_in_parameters(method, preset, values, ranks, spent) -> None:
    plan = rules("80", 80, method, preset).last_plan(values)
    assert (plan.ranks, plan.spent, plan.budget_units) == (ranks, spent, None)
    assert plan.spending == f"{spent} of 80 parameters"


@pytest.mark.parametrize(
    ("method", "preset"),
    [("adalora", "paper"), ("adalora", "recommended"), ("igu-lora", "official"), ("i-lora", "paper")],
)
def test_a_pruning_ratio_counts_units_for_every_preset(method: str, preset: str) -> None:
    """beta=0.4 of 8 units drops floor(3.2) = 3: the five best stay, four of them dear."""
    ours = rules("beta=0.4", 100, method, preset)
    plan = ours.last_plan(ALIVE)
    assert (plan.ranks, plan.budget_units, plan.spent) == ({"wide": 4, "narrow": 1}, 5, 130)
    assert ours.plan(plan.ranks).budget_parameters == 130
    # At the last cut of a stage that cut before, the ratio is still of all units that there were.
    left = {"wide": ALIVE["wide"][:3], "narrow": ALIVE["narrow"][2:]}
    assert ours.last_plan(left).ranks == {"wide": 3, "narrow": 2}


def test_bounds_hold_at_every_cut() -> None:
    # 80 parameters buy rank 2 in both: from 1 to 4 units each.
    bounded = rules("80", 80, preset="recommended", within=2.0)
    worthless = {"wide": ALIVE["wide"], "narrow": ALIVE["narrow"] / 100}
    assert rules("80", 80, preset="recommended").ranks_at(4, worthless) == {"wide": 2, "narrow": 2}
    for cut in (bounded.ranks_at(4, {**worthless, "wide": ALIVE["wide"] / 1e6}), bounded.last_plan(worthless).ranks):
        assert min(cut.values()) >= 1
    tight = rules("80", 80, preset="recommended", within=1.01)
    assert tight.last_plan(worthless).ranks == {"wide": 2, "narrow": 2}
    assert tight.ranks_at(4, {**worthless, "wide": ALIVE["wide"] / 1e6})["wide"] == 2
    with pytest.raises(LorankError, match="scope and within are for budget_in: parameters"):
        rules("80", 80, within=2.0)


def test_cuts_on_the_way_count_what_the_budget_counts() -> None:
    """Linear from 8 units to 5 in four steps: 7.25, 6.5, 5.75, then 5; rounded down."""
    ours = rules("beta=0.4", 100, preset="recommended", curve="linear", begin=1, end=4)
    assert [ours.budget_at(step) for step in range(5)] == [8, 7.25, 6.5, 5.75, 5]
    assert [sum(ours.ranks_at(step, ALIVE).values()) for step in range(4)] == [8, 7, 6, 5]


SCRIPT = {"gate_proj": (5.42 + 1) / 2, "up_proj": (5.42 + 1) / 2, "down_proj": (5.42 + 1) / 2}


def llama(layers: int, width: int, wide: int, kv: int) -> dict[str, tuple[int, int]]:
    parts = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, kv), "self_attn.v_proj": (width, kv)}
    parts |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (width, wide), "mlp.up_proj": (width, wide)}
    parts["mlp.down_proj"] = (wide, width)
    return {f"model.layers.{k}.{part}": shape for k in range(layers) for part, shape in parts.items()}


@pytest.mark.parametrize(
    ("shapes", "asked", "whole", "share"),
    [
        # The script of IGU-LoRA's code: Llama-2-7B under the multiplier 5.42 of another model; 32·32·(4 + 3·3.21) = 13,957.
        (llama(32, 4096, 11008, 4096), SCRIPT, 13957.12, 0.375),
        # By the model's own shape: 4864/896 + 1 halved is 3.214, and k and v cost 1 though they are narrow.
        (llama(24, 896, 4864, 128), "official", 24 * 32 * (4 + 3 * (4864 / 896 + 1) / 2), 0.4995),
    ],
)
def test_the_target_total_rank_of_igu_loras_code(shapes, asked, whole: float, share: float) -> None:
    weights, ranks = unit_weights(shapes, asked), dict.fromkeys(shapes, 32)
    costs = {name: sum(shape) for name, shape in shapes.items()}
    choices = choose_options("igu-lora", "official", {"cost_weights": asked}).choices
    limits = choices.ranks.model_dump()
    initial = InitialAdapter(ranks, costs, "rank=5234", 0, limits, 2.0, {}, weights)
    assert initial.weighted == pytest.approx(whole)
    assert 5234 / initial.weighted == pytest.approx(share, abs=5e-5)
    source = np.random.default_rng(0)
    alive = {name: source.random(32) for name in shapes}
    plan = CutRules(initial, choices, CutSchedule(0, 1, 1)).last_plan(alive)
    # The code's rule: the least important go, one after the other, until what went weighs at least what is too much.
    ascending = sorted((value, name) for name, values in alive.items() for value in values)
    left, gone = dict(ranks), 0.0
    for _, name in ascending:
        if gone >= whole - 5234:
            break
        gone += weights[name]
        left[name] -= 1
    assert plan.ranks == left
    kept = sum(weights[name] * rank for name, rank in plan.ranks.items())
    assert plan.spending.startswith(f"{kept:,.2f} weighted units of rank (5,234 asked for)")


def test_official_counts_by_the_models_shape_unless_told_otherwise() -> None:
    assert choose_options("igu-lora", "official", {}).choices.cut.cost_weights == "official"
    shapes = {"bert.layer.0.attention.output.dense": (8, 8), "bert.layer.0.intermediate.dense": (8, 32)}
    assert list(unit_weights(shapes, "official").values()) == [1.0, 2.5]
    with pytest.raises(LorankError, match="'gate_proj', which no adapted module is or ends with"):
        unit_weights(shapes, SCRIPT)


def test_equal_scores_are_said() -> None:
    with pytest.warns(LorankWarning, match="every score is equal"):
        rules("rank=4", 80).last_plan({name: np.zeros(4) for name in RANKS})
