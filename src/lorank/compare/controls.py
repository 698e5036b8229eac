"""Controls of a comparison: plans that a method did not make, and adapters that no plan was made for."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorank.artefact import read_json
from lorank.engine.options import GROWTH_ON_SCORING_SET, ScoringSetChoices, comparisons
from lorank.errors import ComparisonError
from lorank.plan import RankPlan
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import ScoringSet, TrainingSection
from lorank.training.steps import stage_steps


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


def shortened(recipe: Recipe, examples: int, run_folder: Path) -> tuple[Recipe, int]:
    """The recipe with its training shortened by what search and scoring cost, in steps of that training.

    A pass over a scoring batch counts like an optimizer step on as many examples: both go forward and backward once.

    Args:
        recipe: of the method whose plan is trained.
        examples: in the training data.
        run_folder: of the run that made the plan.

    Returns:
        The recipe, and the steps that it was shortened by.

    Raises:
        ComparisonError: nothing would be left.

    """
    try:
        found = read_json(run_folder / "metrics.json")["results"][recipe.method]
        cost = found.get("search") or found["stage1"]  # of earlier versions
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ComparisonError(
            f"{run_folder / 'metrics.json'} does not say what the plan cost: its run has to end first; run the grid again"
        ) from None
    spent, whole = steps_before(recipe, {"search": cost}), stage_steps(recipe.train, examples)
    if spent >= whole:
        raise ComparisonError(_nothing_left(spent, whole))
    train = recipe.train.model_copy(update={"max_steps": whole - spent})
    return recipe.model_copy(update={"train": train}), spent


def steps_before(recipe: Recipe, result: Mapping[str, Any]) -> int:
    """What a plan cost, in steps of the training that is judged: search, scoring, calibration.

    A pass over a batch counts like a step on as many examples, also where it only goes forward.

    Args:
        recipe: of the run.
        result: of the method, as in the run's metrics.json.

    """
    if cost := result.get("search") or result.get("stage1"):  # of earlier versions
        search = recipe.deciding_stage
        scored = recipe.measure.scoring_batch_size if isinstance(recipe.measure, ScoringSet) else search.batch_size
        return _in_steps(search, recipe.train, cost["steps"], cost["passes"] * scored)
    if looked_at := result.get("calibration"):
        return _in_steps(recipe.train, recipe.train, 0, looked_at["examples"])
    return int(result.get("scoring_passes", 0))


def check_shortened(recipe: Recipe, examples: int) -> None:
    """Refuse a first stage that is as expensive as the second, as far as it can be told before it is run.

    Raises:
        ComparisonError: nothing would be left of the second stage.

    """
    choices, search = recipe.choices(), recipe.deciding_stage
    if not isinstance(choices, ScoringSetChoices) or choices.cut.stop_when_stable is not None:
        return
    assert isinstance(recipe.measure, ScoringSet)
    options, steps = choices.measure, stage_steps(search, examples)
    batches = (steps - int(options.warmup * steps)) // options.every if options.when == "during" else 1
    passes = batches + (comparisons(batches, GROWTH_ON_SCORING_SET) if options.when == "during" else 0)
    spent = _in_steps(search, recipe.train, steps, passes * recipe.measure.scoring_batch_size)
    whole = stage_steps(recipe.train, examples)
    if spent >= whole:
        raise ComparisonError(_nothing_left(spent, whole))


def _in_steps(search: TrainingSection, train: TrainingSection, steps: int, scored: int) -> int:
    """Steps of search and scored examples, in steps of train."""
    seen = steps * search.batch_size * search.gradient_accumulation + scored
    return math.ceil(seen / (train.batch_size * train.gradient_accumulation))


def _nothing_left(spent: int, whole: int) -> str:
    return (
        f"equal-compute: search and scoring cost at least as much as {spent:,} steps, the whole training has {whole:,}; shorten "
        "search, or leave equal-compute out"
    )
