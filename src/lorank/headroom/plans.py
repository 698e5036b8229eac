"""Plans to try at one exact budget: uniform ranks, random ones, and those that adapt one kind of modules only."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lorank.allocation.budgeted import allocate
from lorank.allocation.top_b import uniform_scores
from lorank.module_names import expert_of, is_attention, leaf_of, places
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.targets import Target, unit_costs

UNIFORM = "uniform"
_SPREAD = 1.0  # standard deviation of the logarithm of a random plan's scores
# Last part of the names of query and key, value and output projections in attentions of transformers.
_QUERY_KEY = ("query", "key", "q_proj", "k_proj", "q_lin", "k_lin", "q", "k", "query_proj", "key_proj", "wq", "wk")
_VALUE_OUTPUT = (
    *("value", "v_proj", "v_lin", "v", "value_proj", "wv"),
    *("out_proj", "o_proj", "out_lin", "o", "wo", "dense", "attn_out"),
)


def _is_query_key(name: str) -> bool:
    return is_attention(name) and leaf_of(name).lower() in _QUERY_KEY


def _is_value_output(name: str) -> bool:
    return is_attention(name) and leaf_of(name).lower() in _VALUE_OUTPUT


# Name of a plan -> which modules it adapts.
KINDS: Mapping[str, Callable[[str], bool]] = {
    "feed-forward": lambda name: not is_attention(name),
    "attention": is_attention,
    "query, key": _is_query_key,
    "value, output": _is_value_output,
}
# A plan for each projection alone, where a model has no more of them. Scores miss a projection that others can stand in for, such
# as `down` of an early layer (docs/where-ranks-matter.md).
_MOST_PROJECTIONS = 8


def uniform_plan(targets: tuple[Target, ...], budget: int, scale: float) -> RankPlan:
    """Equal ranks, the remainder from the first layer on."""
    return allocate(uniform_scores(unit_costs(targets), _most(targets)), budget, scale=scale)


def random_plan(targets: tuple[Target, ...], budget: int, scale: float, seed: int) -> RankPlan:
    """Ranks in proportion to log-normal scores, drawn by a seed; the whole budget is spent."""
    costs = unit_costs(targets)
    drawn = np.exp(_SPREAD * np.random.default_rng(seed).standard_normal(len(costs)))
    scores = {name: np.array([score]) for name, score in zip(costs, drawn, strict=True)}
    own: dict[str, Any] = {"method": "random", "seed": seed}
    return allocate(ImportanceScores(scores, costs, None, own, max_ranks=_most(targets)), budget, scale=scale)


def kinds_of(names: Iterable[str]) -> tuple[dict[str, Callable[[str], bool]], str | None]:
    """Kinds of modules that get a plan of their own: those of `KINDS`, and each projection alone.

    Returns:
        Name -> whether a module is of this kind; and why projections are left out, None where they are not.

    Example:
        >>> kinds, _ = kinds_of(["layers.0.mlp.up_proj", "layers.0.mlp.down_proj"])
        >>> list(kinds)[len(KINDS) :]
        ['up_proj alone', 'down_proj alone']

    """
    names = list(names)
    alike = {name: expert[0] if (expert := expert_of(name)) else name for name in names}
    projections = {name: place.projection for name, place in places(alike.values()).items()}
    each = sorted(set(projections.values()), key=list(projections.values()).index)
    if len(each) > _MOST_PROJECTIONS:
        return dict(KINDS), f"there are {len(each)} projections, and at most {_MOST_PROJECTIONS} are tried alone"
    own = {
        f"{projection} alone": lambda name, projection=projection: projections[alike[name]] == projection
        for projection in each
    }
    return {**KINDS, **own}, None


def plans_by_kind(targets: tuple[Target, ...], budget: int, scale: float) -> tuple[dict[str, RankPlan], dict[str, str]]:
    """Equal ranks in the modules of one kind, none elsewhere, at the same budget.

    Returns:
        Name -> plan; and of the kinds that are left out: name -> why.

    """
    kinds, too_many = kinds_of(target.name for target in targets)
    plans, left_out = dict[str, RankPlan](), dict[str, str]()
    if too_many:
        left_out["each projection alone"] = too_many
    all_costs = unit_costs(targets)
    for kind, belongs in kinds.items():
        inside = tuple(target for target in targets if belongs(target.name))
        room = sum(target.max_rank * target.unit_cost for target in inside)
        if not inside or len(inside) == len(targets):
            left_out[kind] = f"{'no' if not inside else 'every'} target is of this kind"
        elif room < budget:
            left_out[kind] = f"these modules can spend only {room:,} of {budget:,} parameters"
        elif budget < min(target.unit_cost for target in inside):
            left_out[kind] = "the budget pays for no unit of these modules"
        else:
            own = uniform_plan(inside, budget, scale)
            ranks = dict.fromkeys(all_costs, 0) | dict(own.ranks)
            made_by = {"method": "by kind", "kind": kind}
            plans[kind] = RankPlan(ranks, all_costs, own.budget, own.budget_parameters, scale, made_by)
    return plans, left_out


def tried_plans(
    targets: tuple[Target, ...], budget: int, scale: float, *, random: int, seed: int
) -> tuple[dict[str, RankPlan], dict[str, str]]:
    """Uniform ranks first, plans by kind, random ones; a plan with the ranks of one before it is left out.

    Args:
        targets: what is adapted.
        budget: in parameters; each plan spends all of it but less than one unit.
        scale: alpha / r.
        random: how many random plans.
        seed: of the random plans.

    Returns:
        Name -> plan; and what was left out: name -> why.

    """
    by_kind, left_out = plans_by_kind(targets, budget, scale)
    drawn = {f"random {number}": random_plan(targets, budget, scale, 1000 * seed + number) for number in range(random)}
    plans: dict[str, RankPlan] = {}
    for name, plan in ({UNIFORM: uniform_plan(targets, budget, scale)} | by_kind | drawn).items():
        if twin := same_ranks(plan, plans):
            left_out[name] = f"it has the ranks of {twin}"
        else:
            plans[name] = plan
    return plans, left_out


def same_ranks(plan: RankPlan, others: Mapping[str, RankPlan]) -> str | None:
    """Name of a plan with the same ranks; None if there is none."""
    return next((name for name, other in others.items() if dict(other.ranks) == dict(plan.ranks)), None)


def _most(targets: tuple[Target, ...]) -> dict[str, int]:
    return {target.name: target.max_rank for target in targets}
