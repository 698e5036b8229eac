"""From the choices of a method and what is known of a training to the allocator that goes with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.engine.allocator import Allocator
from lorank.engine.cut_rules import InitialAdapter, cut_rules
from lorank.engine.loss_comparison import HALF_TOLERANCE, TOLERANCE
from lorank.engine.measure import Measure, TrainingGradient
from lorank.engine.options import Choices, ScoringSetChoices
from lorank.engine.path_measure import TrainingPath
from lorank.engine.scoring_batches import ScoringBatches
from lorank.engine.scoring_set_path import ScoringSetPath
from lorank.engine.smoother import Absolute, DeviationSmoother, RunningSmoother, Smoother
from lorank.engine.smoothing import updates_needed
from lorank.engine.training_pass import TrainingPass
from lorank.engine.unit_scores import over_processes
from lorank.errors import AllocationError


@dataclass(frozen=True)
class TrainingFacts:
    """What an allocation has to know of the training that it is in.

    Attributes:
        steps: optimizer steps.
        steps_per_epoch: of them, those in which every example is seen once.
        seed: of path coefficients and batches.
        half: whether losses are computed in half precision.
        loss_scale: factor in backward passes of our own, divided out again: small fp16 gradients would vanish.
        may_shrink: False keeps tensors until the end (DDP has them in buckets).

    """

    steps: int
    steps_per_epoch: int
    seed: int = 0
    half: bool = False
    loss_scale: float = 1.0
    may_shrink: bool = True


def needs_passes(options: Choices) -> bool:
    """Whether the measure makes passes of its own."""
    return isinstance(options, ScoringSetChoices) or options.measure.estimator != "training-pass"


def make_allocator(
    adapter: TripletAdapter,
    initial: InitialAdapter,
    options: Choices,
    facts: TrainingFacts,
    passed: TrainingPass | None = None,
    batches: ScoringBatches | None = None,
    baseline: Sequence[torch.Tensor] | None = None,
) -> Allocator:
    """Put measure, smoother and cut together.

    Args:
        adapter: the triplets that train.
        initial: what they started as.
        options: the choices of the method.
        facts: of the training.
        passed: what training computed last, where `needs_passes`.
        batches: of the scoring set, for `ScoringSetChoices`.
        baseline: θ0 of the path, for `baseline: initial`.

    Raises:
        AllocationError: no room to cut in, or no score before the last cut.

    """
    schedule, window = schedule_of(options, facts.steps, facts.steps_per_epoch)
    settings: dict[str, Any] = {
        "seed": facts.seed,
        "loss_scale": facts.loss_scale,
        "tolerance": HALF_TOLERANCE if facts.half else TOLERANCE,
    }
    measure: Measure
    smoother: Smoother
    if isinstance(options, ScoringSetChoices):
        assert passed is not None
        assert batches is not None
        smoother = RunningSmoother(options.smooth.accumulate, options.smooth.ema_decay)
        measure = ScoringSetPath(passed, adapter, options, batches, baseline=baseline, half=facts.half, **settings)
    else:
        signs: dict[str, Absolute] = {"batch": "batch", "window": "window"}
        # Gradients of training are averaged over processes already.
        average = {"average": over_processes} if needs_passes(options) else {}
        smoother = DeviationSmoother(
            options.smooth, window, absolute=signs.get(options.measure.sign, "never"), **average
        )
        if needs_passes(options):
            assert passed is not None
            measure = TrainingPath(passed, adapter, options, facts.steps, **settings)
        else:
            measure = TrainingGradient(adapter, options)
    rules = cut_rules(initial, options, schedule)
    return Allocator(adapter, rules, measure, smoother, may_shrink=facts.may_shrink)


def schedule_of(options: Choices, steps: int, steps_per_epoch: int) -> tuple[CutSchedule, int]:
    """When a run of so many optimizer steps cuts, and how many mini-batches make a window.

    Raises:
        AllocationError: no room to prune in, or no score before the last cut.

    """
    if isinstance(options, ScoringSetChoices):
        return _schedule_of_stage(options, steps), 1
    schedule = CutSchedule.of_run(steps, options.cut.begin, options.cut.end, options.cut.interval)
    every, asked = options.measure.every, options.smooth.window
    if isinstance(asked, str):
        window = max(1, steps_per_epoch // every)
    else:
        window = asked if isinstance(asked, int) else max(1, round(asked * steps / every))
    first = updates_needed(options.smooth.score) * window * every
    if first >= schedule.last:
        said = f"{window} ({asked})" if window != asked else str(window)
        raise AllocationError(
            f"the last cut is at step {schedule.last} of {steps}, but the first scores need {first} steps "
            f"(measure.every {every}, smooth.window {said}, smooth.score {options.smooth.score}); lower measure.every or "
            "smooth.window, raise cut.end, or train longer (in Python the options have no section before their name)"
        )
    return schedule, window


def _schedule_of_stage(options: ScoringSetChoices, steps: int) -> CutSchedule:
    """Scores count after the warm-up; the last cut is at the last step."""
    first = int(options.measure.warmup * steps)
    if options.measure.when == "during" and (steps - first) // options.measure.every < 1:
        raise AllocationError(
            f"the stage has {steps} steps, of which measure.warmup {options.measure.warmup} and measure.every "
            f"{options.measure.every} leave none to score at; lower them or train longer"
        )
    interval = (
        options.cut.interval if isinstance(options.cut.interval, int) else max(1, round(options.cut.interval * steps))
    )
    return CutSchedule(first, steps, steps if options.cut.curve == "one-shot" else interval)
