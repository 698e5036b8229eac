"""Passes of a method beside those of training, exactly as its code makes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lorank.engine.assembly import schedule_of
from lorank.engine.estimators import estimator_points, layer_groups
from lorank.engine.options import (
    GROWTH_IN_TRAINING,
    GROWTH_ON_SCORING_SET,
    ScoringSetChoices,
    TrainingBatchChoices,
    comparisons,
)
from lorank.engine.path_measure import FIRST_INTERVALS, last_check_intervals
from lorank.engine.quadrature import path_nodes
from lorank.memory.question import Question
from lorank.methods import METHODS
from lorank.methods.choose import preset_of
from lorank.methods.method import Preset
from lorank.module_names import places
from lorank.recipe.search_length import search_steps
from lorank.recipe.sections import TrainingSection
from lorank.scoring.options import HessianOptions, InputVarianceOptions


@dataclass(frozen=True)
class Passes:
    """Passes beside the training of the adapter that is served; each is of one batch.

    Attributes:
        search_steps: optimizer steps of a first stage, of a forward and a backward pass each.
        scored_batches: batches that are scored.
        scoring: forward and backward passes that score; `scoring_passes` in what a run writes down.
        forward_only: passes without a backward pass.
        further_backward: backward passes beyond one for each forward pass: those of second derivatives.
        exact: False where the number depends on the data (`intervals: auto`); it is then the least.

    """

    search_steps: int = 0
    scored_batches: int = 0
    scoring: int = 0
    forward_only: int = 0
    further_backward: int = 0
    exact: bool = True

    def overhead(self, question: Question) -> float:
        """Cost in percent of the training of plain LoRA with the same steps.

        A backward pass through frozen weights makes gradients of activations alone, and costs about a forward pass; with
        gradient checkpointing a forward pass more. So a forward pass alone is a half of a pass of training, or a third.
        """
        forwards = 3 if question.gradient_checkpointing else 2
        scoring = self.scoring + self.forward_only / forwards + self.further_backward * (1 - 1 / forwards)
        extra = self.search_steps * question.batch + scoring * question.scored_at_once
        return 100 * extra / (question.steps * question.batch)


def choices_of(question: Question) -> Preset:
    """The choices of the method and preset that are asked for."""
    method = METHODS[question.method]
    return method.presets[preset_of(method, question.preset)]


def extra_passes(question: Question, modules: Sequence[str]) -> Passes:
    """Count the passes that a method makes beside training.

    - AdaLoRA: none. IGU-LoRA `official`: none, but it trains to its last cut, and then from a fresh start for all steps.
    - IGU-LoRA, with `n` scored mini-batches (every `every`-th step before the last cut): those of the estimator for each
      (`estimator_points`, times the number of layers for a path of one layer at a time), a comparison of losses at the 1st, 8th,
      64th ..., and N + 1 for the check of the quadrature at the last cut (`last_check_intervals`).
    - I-LoRA: the steps of the search, `passes_per_batch` for each of the scoring batches, a comparison at the 1st, 2nd, 4th,
      8th ..., and forward passes: one of the first batch before training, two for each of up to four batches where shares are
      signed.
    - Before training: a forward pass for each calibration batch, with a backward pass for all estimators but `gram`, and one more
      for each module (or `modules_at_once` of them) with `hutchinson`. EVA passes the batches again for its start.

    Args:
        question: steps, epochs, batches and the method.
        modules: names of the adapted modules, in the model's order.

    Raises:
        AllocationError: the run is too short for the method.

    """
    choices = choices_of(question)
    if isinstance(choices, ScoringSetChoices):
        return _of_scoring_set(question, choices, len(modules))
    if isinstance(choices, TrainingBatchChoices):
        return _of_training_batches(question, choices, modules)
    batches = math.ceil(question.examples / question.scored_at_once)
    if METHODS[question.method].scorer is None or choices.measure is None:
        return Passes()
    if isinstance(choices.measure, InputVarianceOptions):
        return Passes(scored_batches=batches, forward_only=2 * batches)
    if isinstance(choices.measure, HessianOptions) and choices.measure.estimator == "gram":
        return Passes(scored_batches=batches, forward_only=batches)
    if isinstance(choices.measure, HessianOptions) and choices.measure.estimator == "hutchinson":
        passes = batches * choices.measure.probes
        at_once = choices.measure.modules_at_once
        second = 1 if at_once == "all" else math.ceil(len(modules) / at_once)
        return Passes(scored_batches=batches, scoring=passes, further_backward=passes * second)
    return Passes(scored_batches=batches, scoring=batches)


def _of_training_batches(question: Question, choices: TrainingBatchChoices, modules: Sequence[str]) -> Passes:
    schedule, _ = schedule_of(choices, question.steps, question.steps_per_epoch)
    measure = choices.measure
    scored = (schedule.last - 1) // measure.every
    # From a fresh start the adapter that is served trains after the last cut, for all its steps.
    search = schedule.last if choices.start.factors == "fresh" else 0
    if measure.estimator == "training-pass":
        return Passes(search_steps=search, scored_batches=scored)
    intervals = measure.intervals if isinstance(measure.intervals, int) else FIRST_INTERVALS
    points = len(estimator_points(measure.estimator, intervals, Random(0)))
    groups = 1
    if measure.path_scope == "layer":
        placed = places(modules)
        groups = len(layer_groups([(placed[name].stack, placed[name].layer) for name in modules]))
    last = last_check_intervals(measure, intervals, question.steps)
    passes = scored * points * groups + comparisons(scored, GROWTH_IN_TRAINING) + last + 1
    if measure.intervals == "auto":  # worked out at the 1st, 2nd, 4th, 8th ... of them
        passes += scored.bit_length() * (FIRST_INTERVALS + 1)
    return Passes(search_steps=search, scored_batches=scored, scoring=passes, exact=measure.intervals != "auto")


def _of_scoring_set(question: Question, choices: ScoringSetChoices, modules: int) -> Passes:
    measure, steps = choices.measure, question.steps
    if choices.start.factors == "fresh":
        name = preset_of(METHODS[question.method], question.preset)
        share = METHODS[question.method].search_share.get(name)
        stage = TrainingSection(batch_size=question.batch)
        # As a recipe has it: a scoring batch of the size that is asked for here.
        asked = measure.model_copy(update={"scoring_batch_size": question.scored_at_once})
        steps = question.steps if share is None else search_steps(stage, stage, asked, share, question.steps)
    schedule, _ = schedule_of(choices, steps, question.steps_per_epoch)
    scored = (steps - schedule.first) // measure.every
    nodes = 1 if measure.draw == "random" else len(path_nodes(measure.nodes, measure.intervals).alphas)
    per_batch = nodes * (modules if measure.path_scope == "module" else 1)
    forward = 1 + (2 * min(scored, 4) if measure.parameter_factor == "signed" else 0)
    return Passes(
        search_steps=steps if choices.start.factors == "fresh" else 0,
        scored_batches=scored,
        scoring=scored * per_batch + comparisons(scored, GROWTH_ON_SCORING_SET),
        forward_only=forward,
    )
