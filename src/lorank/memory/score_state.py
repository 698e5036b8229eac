"""Memory that a method keeps to score by, and what it needs for a moment while it scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorank.engine.assembly import schedule_of
from lorank.engine.options import ScoringSetChoices, TrainingBatchChoices
from lorank.memory.adapter_bytes import FP32, Trained
from lorank.memory.passes import choices_of
from lorank.memory.question import Question
from lorank.methods import METHODS
from lorank.scoring.options import CalibrationOptions, FoldOptions, HessianOptions, InputVarianceOptions


@dataclass(frozen=True)
class ScoreState:
    """Bytes for scores, in fp32 whatever the model is in.

    Attributes:
        kept: from one step to the next, or through the calibration.
        moment: more, while a batch is scored.
        before_training: whether it is gone when training begins.

    """

    kept: int
    moment: int
    before_training: bool


def score_state(question: Question, trained: Trained, targets: Mapping[str, tuple[int, int]]) -> ScoreState:
    """What a method keeps.

    With u units of rank and `E = Σ r_m (d_in + d_out)` entries of P and Q, a number being 4 bytes:

    | method                                   | numbers kept                                                     |
    |------------------------------------------|------------------------------------------------------------------|
    | AdaLoRA, IGU-LoRA, state `element`       | 2 (E + u), mean and deviation; 2 E where λ counts as |λ|         |
    | the same, state `triplet`                | 2 u                                                              |
    | the same, window above 1                 | 3 in place of 2: the sum of the window                           |
    | I-LoRA                                   | 3 u: mean, squares and the last                                  |
    | Sensitivity-LoRA, gradient               | folds times Σ d_in, and counts; `kfac` folds for each module more|
    | EVA                                      | components times d_in for each module, and two more rows         |
    | magnitude, uniform                       | none                                                             |

    Args:
        question: method and preset.
        trained: initial ranks.
        targets: module name -> `(d_in, d_out)`.

    Raises:
        AllocationError: the run is too short for the method.

    """
    choices, units = choices_of(question), trained.units
    entries = sum(rank * sum(targets[name]) for name, rank in trained.initial_ranks.items())
    if isinstance(choices, ScoringSetChoices):
        factors = entries + units if choices.measure.parameter_factor == "none" else units
        points = 1 if choices.measure.draw == "random" else 2
        return ScoreState(3 * FP32 * units, 2 * points * FP32 * factors, before_training=False)
    if isinstance(choices, TrainingBatchChoices):
        _, window = schedule_of(choices, question.steps, question.steps_per_epoch)
        scored = units if choices.smooth.state == "triplet" else entries
        scored += units if choices.smooth.state == "element" and choices.smooth.lambda_score == "scored" else 0
        kept = (3 if window > 1 else 2) * scored
        return ScoreState(FP32 * kept, FP32 * _copies(choices.measure.estimator) * scored, before_training=False)
    if METHODS[question.method].scorer is None or choices.measure is None:
        return ScoreState(0, 0, before_training=True)
    kept = _calibration_numbers(choices.measure, targets)
    return ScoreState(FP32 * kept, FP32 * kept, before_training=True)


def _copies(estimator: str) -> int:
    """Copies of what is scored while one mini-batch is: its products; gradients and their weighted sums before that."""
    return {"training-pass": 1, "single-pass": 2}.get(estimator, 4)


def _calibration_numbers(measure: CalibrationOptions, targets: Mapping[str, tuple[int, int]]) -> int:
    inputs: list[Any] = [d_in for d_in, _ in targets.values()]
    if isinstance(measure, InputVarianceOptions):
        return sum((min(measure.components, d_in) + 2) * d_in for d_in in inputs)
    folds = measure.folds if isinstance(measure, FoldOptions) else 0
    numbers = folds * sum(inputs)
    if isinstance(measure, HessianOptions) and measure.estimator in ("gram", "kfac"):
        numbers += folds * len(inputs) * (2 if measure.estimator == "kfac" else 1)
    return math.ceil(numbers)
