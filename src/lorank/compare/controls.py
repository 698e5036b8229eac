"""Controls of a comparison: plans that a method did not make, and adapters that no plan was made for."""

import random
from collections.abc import Mapping
from dataclasses import replace

from lorank.plan import RankPlan


def shuffled(plan: RankPlan, seed: int) -> RankPlan:
    """The plan with its ranks shuffled among modules of equal cost: the same ranks, the same parameters, other modules.

    If a plan is no better than this, it does not matter which module got which rank.
    """
    source = random.Random(f"{seed}/shuffled plan")
    alike: dict[int, list[str]] = {}
    for name, cost in plan.unit_costs.items():
        alike.setdefault(cost, []).append(name)
    ranks: dict[str, int] = {}
    for names in alike.values():
        held = [plan.ranks[name] for name in names]
        source.shuffle(held)
        ranks |= dict(zip(names, held, strict=True))
    made_by = {key: value for key, value in plan.provenance.items() if key not in ("preset", "stability")}
    described: Mapping[str, object] = {**made_by, "method": "shuffled", "shuffled": plan.provenance.get("method")}
    return replace(plan, ranks={name: ranks[name] for name in plan.ranks}, provenance=described)
