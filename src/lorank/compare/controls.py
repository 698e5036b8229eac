"""Controls of a comparison: plans that a method did not make, and adapters that no plan was made for."""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorank.errors import ComparisonError
from lorank.methods import METHODS
from lorank.plan import RankPlan
from lorank.training.recipe import Recipe
from lorank.training.scoring_set import steps_per_epoch


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


def shortened(recipe: Recipe, examples: int, made: Path) -> tuple[Recipe, int]:
    """The recipe with its second stage shortened by what stage 1 and scoring cost, in steps of the second stage.

    A pass over a scoring batch counts like an optimizer step on as many examples: both go forward and backward once.

    Args:
        recipe: of the method whose plan is trained.
        examples: in the training data.
        made: folder of the run that made the plan.

    Returns:
        The recipe, and the steps that it was shortened by.

    Raises:
        ComparisonError: nothing would be left.

    """
    stage1, stage2 = recipe.stage1, recipe.stage2
    cost = json.loads((made / "metrics.json").read_text(encoding="utf-8"))["results"][recipe.method]["stage1"]
    batch = stage1.batch_size * stage1.gradient_accumulation
    scored = recipe.scoring.batch_size if METHODS[recipe.method].trained == "triplets" else stage1.batch_size
    seen = cost["steps"] * batch + cost["passes"] * scored
    spent = math.ceil(seen / (stage2.batch_size * stage2.gradient_accumulation))
    whole = stage2.max_steps or math.ceil(stage2.epochs * steps_per_epoch(stage2, examples))
    if spent >= whole:
        raise ComparisonError(
            f"equal-compute: stage 1 and scoring cost as much as {spent:,} steps, the whole training has {whole:,}; shorten "
            "stage 1, or leave equal-compute out"
        )
    return recipe.model_copy(update={"stage2": stage2.model_copy(update={"max_steps": whole - spent})}), spent
