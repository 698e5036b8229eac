"""What a measurement of headroom is asked for, what it found, and `headroom.json`, from which it continues."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorank.artefact import read_json, versions, write_json
from lorank.errors import ComparisonError, OutputError, one_line
from lorank.headroom.plans import UNIFORM
from lorank.headroom.statistics import chosen_plans, spread_of
from lorank.headroom.training import SideBySide
from lorank.headroom.verdict import LEAST_SEEDS, SMALLEST, Headroom, Look
from lorank.plan import RankPlan
from lorank.received_files import record_of
from lorank.recipe.recipe import Recipe

RESULT = "headroom.json"
HELD_OUT = "held-out.json"
LEAST_HELD_OUT = 20


@dataclass(frozen=True)
class HeadroomOptions:
    """How much is tried.

    Attributes:
        random: random plans, beside uniform ranks, those by kind of module and those that methods learn.
        seeds: at most; fewer where the answer is clear before.
        held_out: examples of the training data that plans are judged on, at most a fifth of them.
        smallest: the smallest gain that counts, as a share of the loss of uniform ranks.
        side_by_side: plans that train in one pass; None: as many as fit into a part of the memory.

    Raises:
        ComparisonError: a value that is not allowed.

    """

    random: int = 8
    seeds: int = 8
    held_out: int = 1000
    smallest: float = SMALLEST
    side_by_side: int | None = None

    def __post_init__(self) -> None:
        if self.random < 2 or self.seeds < LEAST_SEEDS or self.held_out < LEAST_HELD_OUT:
            raise ComparisonError(
                f"{self.random} random plans, {self.seeds} seeds and {self.held_out} held-out examples are too few; at least 2, "
                f"{LEAST_SEEDS} and {LEAST_HELD_OUT} are needed"
            )
        if not 0 < self.smallest < 1 or (self.side_by_side is not None and self.side_by_side < 1):
            raise ComparisonError(
                "the smallest gain that counts is a share between 0 and 1, and --side-by-side starts at 1"
            )


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        headroom: the verdict.
        plans: name -> plan, uniform ranks first.
        losses: `(plans, seeds, examples)` float64.
        chosen: plan name -> how often it was chosen, of the two halves of the examples on each seed.
        left_out: name of a plan -> why it was not tried.
        directory: where results are.
        steps: of each training.

    """

    headroom: Headroom
    plans: Mapping[str, RankPlan]
    losses: np.ndarray
    chosen: Mapping[str, int]
    left_out: Mapping[str, str]
    directory: Path
    steps: int


def check_held_out(directory: Path, trained: SideBySide) -> None:
    """Note which examples are held out, before anything is trained; refuse others than were held out before.

    Raises:
        OutputError: the directory is of a measurement with other held-out examples: its plans were learned on some of these.

    """
    path = directory / HELD_OUT
    now = {"examples": len(trained.held_out), "sum": trained.sum_of_held_out}
    if not path.is_file():
        write_json(path, now)
        return
    try:
        before = read_json(path)
        held = int(before["examples"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: damaged ({one_line(error)}); give another --output") from None
    if before != now:
        raise OutputError(
            f"{directory} was begun with {held} held-out examples, now {now['examples']} others are held out, and "
            f"plans were learned on some of them; give --held-out {held} with the same data, or another --output"
        )


def looks_made(path: Path, plans: Mapping[str, RankPlan], smallest: float) -> list[Look]:
    """Looks of this measurement before: they have used a part of the chance of a false claim.

    Raises:
        OutputError: they were of other plans, or of another smallest gain that counts.

    """
    if not path.is_file():
        return []
    try:
        before = read_json(path)
        names, looks = list(before["plans"]), [record_of(Look, look) for look in before["looks"]]
        counted = before["options"]["smallest"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: damaged ({error}); remove it, or give another --output") from None
    if names != list(plans):
        raise OutputError(
            f"{path} was made with {len(names)} plans, now there are {len(plans)}: results were looked at already, so plans "
            "cannot be added; give another --output"
        )
    if counted != smallest:
        raise OutputError(
            f"{path}: results were looked at with a smallest gain of {counted:g}, now it is {smallest:g}; what counts is chosen "
            f"before results are seen: give --smallest {counted:g}, or another --output"
        )
    return looks


def times_chosen(losses: np.ndarray, halves: np.ndarray, plans: Mapping[str, RankPlan]) -> dict[str, int]:
    """How often each plan is the best of a half of the examples on a seed; uniform ranks are not chosen."""
    names, counts = list(plans), dict[str, int]()
    for half in (halves, ~halves):
        for plan in chosen_plans(losses, half).tolist():
            counts[names[plan]] = counts.get(names[plan], 0) + 1
    return counts


def write_result(measured: Measured, looks: Sequence[Look], recipe: Recipe, trained: SideBySide, more: Any) -> None:
    """Write headroom.json.

    Args:
        measured: what was found.
        looks: all that were made, the last one that of the verdict.
        recipe: that was carried out.
        trained: how plans were trained.
        more: entries of the caller's own.

    """
    headroom, means = measured.headroom, measured.losses.mean(2)
    drawn = [number for number, name in enumerate(measured.plans) if name.startswith("random")]
    spreads = {"all plans": headroom.spread}
    if len(drawn) > 1:
        spreads["random plans"] = spread_of(means[drawn])
    low, high = headroom.interval
    of_plans = {
        name: {
            "loss": float(means[number].mean()),
            "gain": float((means[0] - means[number]).mean()),
            "loss by seed": means[number].tolist(),
            "times chosen": measured.chosen.get(name, 0),
            "spent": plan.spent,
            "ranks": dict(plan.ranks),
        }
        for number, (name, plan) in enumerate(measured.plans.items())
    }
    content = {
        "verdict": headroom.verdict,
        "sentence": headroom.sentence,
        "gain": {"mean": headroom.gain.mean, "low": low, "high": high, **asdict(headroom.gain)},
        "best_plan_at_most": headroom.best,
        "smallest_that_counts": headroom.smallest,
        "seeds_needed": headroom.seeds_needed,
        "uniform_loss": headroom.uniform_loss,
        "spread": {name: {key: _finite(v) for key, v in asdict(one).items()} for name, one in spreads.items()},
        "looks": [asdict(look) for look in looks],
        "plans": of_plans,
        "left_out": dict(measured.left_out),
        "budget": measured.plans[UNIFORM].budget_record | {"asked": recipe.budget},
        "seeds": [recipe.seed + number for number in range(means.shape[1])],
        "examples": {"trained": len(trained.lengths), "judged": measured.losses.shape[2], "part": "held out of train"},
        "training": {**recipe.train.model_dump(mode="json"), "steps": trained.steps, "side_by_side": trained.most},
        **more,
        "versions": versions(),
    }
    write_json(measured.directory / RESULT, content)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
