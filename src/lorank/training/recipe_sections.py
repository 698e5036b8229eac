"""The parts of a recipe: data, scoring, allocation, and the two stages of training."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from transformers import SchedulerType

from lorank.allocation.top_b import RankBy, Scope
from lorank.scoring.options import CalibrationOptions, PathScoreOptions
from lorank.training.text_tasks import TEXT_TASKS

# `reduce_lr_on_plateau` would need an evaluation while training, on data that is kept for the end.
SCHEDULERS = tuple(
    scheduler.value for scheduler in SchedulerType if scheduler.value not in ("reduce_lr_on_plateau", "greedy")
)


class Section(BaseModel):
    """Part of a recipe: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Where examples come from: two files, or a hub name with two splits."""

    train: str | None = Field(
        None, description="csv, tsv (quotes are part of the text), json, jsonl or parquet file to train on"
    )
    test: str | None = Field(
        None, description="file that is evaluated once at the end; never used for scoring or early stopping"
    )
    name: str | None = Field(None, description="hub name instead of files, for example nyu-mll/glue")
    config: str | None = Field(None, description="configuration of the hub data set, for example cola")
    train_split: str = Field("train", description="split of the hub data set to train on")
    test_split: str = Field("validation", description="split that is evaluated once at the end")
    text: tuple[str, ...] = Field(
        ("text",), min_length=1, max_length=2, description="one or two text columns; of summarization: document"
    )
    label: str = Field("label", description="label column; of summarization: summary")
    task: Literal["classification", "regression", "summarization", "instruction", "boolq", "arc", "gsm8k", "aqua"] = (
        Field(
            "classification", description="what the label is, or what is written; docs/tasks.md has columns and prompts"
        )
    )
    max_length: int = Field(128, ge=8, description="longer texts, or prompts, are cut, in tokens")
    prompt: str | None = Field(
        None, description="of tasks that write: template with columns in braces; null: the task's"
    )
    max_target_length: int | None = Field(
        None,
        ge=2,
        description="of tasks that write: longer targets are cut, and no more is written, in tokens; null: the task's",
    )
    beams: int = Field(1, ge=1, description="of tasks that write: width of the beam search; 1 is greedy")

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _columns_of_summaries(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("task") == "summarization":
            return {"text": ("document",), "label": "summary", **content}
        return content

    @property
    def target_length(self) -> int:
        """Most tokens of a target."""
        return self.max_target_length or TEXT_TASKS[self.task].tokens

    @property
    def writes(self) -> bool:
        """Whether the answer is a text, in place of a class or a number."""
        return self.task not in ("classification", "regression")

    @model_validator(mode="after")
    def _fits_the_task(self) -> "DataSection":
        known = DataSection.model_fields
        if not self.writes:
            for key in ("prompt", "max_target_length", "beams"):
                if getattr(self, key) != known[key].default:
                    raise ValueError(f"{key} is for tasks that write a text, {self.task} does not; leave it out")
        elif self.task != "summarization":
            for key in ("text", "label"):
                if getattr(self, key) != known[key].default:
                    raise ValueError(f"{key}: the columns of {self.task} are its own (docs/tasks.md); leave it out")
        if self.prompt is not None and "{" not in self.prompt.rpartition("}")[0]:
            raise ValueError('prompt names no column in braces, for example "{question} Answer:"')
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.name is None) == (self.train is None):
            raise ValueError("give either train and test (files) or name (hub), not both and not neither")
        if self.name is None and self.test is None:
            raise ValueError("a test file is missing: it is what the run is judged on")
        return self


class ScoringSection(PathScoreOptions):
    """How units of rank are scored, and on which examples."""

    source: Literal["held-out", "training"] = Field(
        "held-out", description="A10: own part of the training data, or the training data itself (ablation)"
    )
    fraction: float = Field(0.1, gt=0, lt=1, description="A10: share of the training examples held out for scoring")
    batch_size: int = Field(32, ge=1, description="examples in a scoring batch; the last, short one is left out")
    when: Literal["during", "after"] = Field("during", description="A12: while stage 1 trains, or one pass at its end")
    every: int = Field(1, ge=1, description="A12: score one batch every this many optimizer steps")
    warmup: float = Field(0.1, ge=0, lt=1, description="A12: share of stage 1 before scores count")


class CalibrationSection(CalibrationOptions):
    """On which examples the frozen model is scored, for methods that score before training, and how."""

    examples: int = Field(256, ge=1, description="training examples that are scored on; all where there are fewer")
    batch_size: int = Field(16, ge=1, description="examples at a time; changes speed and memory, not the scores")


class AllocationSection(Section):
    """How scores become ranks."""

    rank_by: RankBy = Field("score", description="what a unit of rank is worth")
    scope: Scope = Field(
        "global", description="A6: one threshold for all modules, or a share of the budget for each layer"
    )
    max_rank: int | None = Field(None, ge=1, description="upper limit for every module")
    min_rank: int = Field(0, ge=0, description="lower limit for every module; at 0 a module may get no adapter")
    multiple_of: int = Field(1, ge=1, description="every rank is a multiple of this")


class StopWhenStable(Section):
    """End stage 1 when `windows` windows in a row each moved less than `share` of the plan's parameters."""

    share: float = Field(0.05, gt=0, le=1, description="of the parameters of the cut that would be made now")
    window: int = Field(10, ge=1, description="scoring batches in a window")
    windows: int = Field(2, ge=1, description="how many stable windows in a row end the stage")


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
