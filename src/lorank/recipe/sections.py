"""The parts of a recipe: data, scoring, allocation, and the two stages of training."""

from typing import Literal

from pydantic import Field
from transformers import SchedulerType

from lorank.engine.options import RunningOptions, ScoringSetOptions, StopWhenStable
from lorank.scoring.options import CalibrationOptions
from lorank.validation import Section

# `reduce_lr_on_plateau` would need an evaluation while training, on data that is kept for the end.
SCHEDULERS = tuple(
    scheduler.value for scheduler in SchedulerType if scheduler.value not in ("reduce_lr_on_plateau", "greedy")
)


class ScoringSection(ScoringSetOptions, RunningOptions):
    """How units of rank are scored, and on which examples."""

    fraction: float = Field(0.1, gt=0, lt=1, description="A10: share of the training examples held out for scoring")
    batch_size: int = Field(32, ge=1, description="examples in a scoring batch; the last, short one is left out")


class CalibrationSection(CalibrationOptions):
    """On which examples the frozen model is scored, for methods that score before training, and how."""

    examples: int = Field(256, ge=1, description="training examples that are scored on; all where there are fewer")
    batch_size: int = Field(16, ge=1, description="examples at a time; changes speed and memory, not the scores")


class TrainingSection(Section):
    """One stage of training, in the words of transformers' TrainingArguments."""

    epochs: float = Field(3.0, gt=0, description="times through the training data")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(32, ge=1, description="examples in a micro-batch, on each device")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches in an optimizer step")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the stage in which the learning rate rises")
    scheduler: str = Field("linear", description="learning-rate schedule, by transformers' name")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0 does not clip")


class Stage1Section(TrainingSection):
    """Train triplets and score them."""

    initial_rank: int = Field(8, ge=1, description="triplets of every module at the start")
    orthogonality: float = Field(0.1, ge=0, description="A15: weight of the regulariser, never in the reported loss")
    pruning: Literal["one-shot", "cubic"] = Field(
        "one-shot", description="A8: one cut at the end, or a shrinking budget"
    )
    train_on_path: bool = Field(False, description="A11: take training steps at a random path point too")
    stop_when_stable: StopWhenStable | None = Field(
        None, description="end the stage early by the rule below; null trains it whole"
    )


class Stage2Section(TrainingSection):
    """Train a plain PEFT LoRA with the plan's ranks, freshly initialised, on the whole training set."""

    skip: bool = Field(
        False, description="keep the triplets that the plan keeps as stage 1 left them, and train no further (ablation)"
    )
    scale_by: Literal["initial", "target", "active"] = Field(
        "initial",
        description="A13: alpha / r with r the initial rank (same scale as stage 1), the plan's mean, or the module's own",
    )
