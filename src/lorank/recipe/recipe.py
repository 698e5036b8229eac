"""The recipe: everything that decides a run, as YAML, with `key=value` overrides. Unknown keys are refused."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from lorank.budget import Budget
from lorank.engine.options import RankOptions, TrainingBatchChoices, check_ranks
from lorank.errors import BudgetError, RecipeError, one_line
from lorank.methods import METHODS, Method, Preset
from lorank.methods.choose import preset_of
from lorank.recipe.sections import (
    SCHEDULERS,
    CalibrationSection,
    ScoringSection,
    Stage1Section,
    Stage2Section,
)
from lorank.tasks.section import DataSection
from lorank.validation import Section, explain, nearest


class Recipe(Section):
    """A whole run. `seed` decides every draw; on CPU a recipe gives the same bits each time.

    Read one from a file with `lorank.load_recipe(path, overrides)`, or make it of the same keys: `Recipe(model=..., budget="r=2",
    data={"train": ..., "test": ...}, stage2={"epochs": 1})`. The preset of its method fills in what is left out.
    docs/recipe.md says what every key means.

    Raises:
        RecipeError: an unknown key (with the nearest valid one), a bad value, or no such preset.

    """

    model: str = Field(description="hub name or folder of the base model")
    method: str = Field("i-lora", description=f"one of {', '.join(METHODS)}; lora is uniform ranks")
    preset: str | None = Field(
        None,
        description="named choices of the method: paper, official, recommended, loss-per-parameter; null: its default",
    )
    budget: str = Field(description="adapter parameters: 0.33M, 0.06%, r=2, rank=144 or beta=0.5")
    data: DataSection
    targets: str | tuple[str, ...] | None = Field(
        None,
        description="names of modules (or their ends), or a regular expression; null: every linear layer of the blocks",
    )
    baselines: tuple[str, ...] = Field((), description="methods trained and evaluated beside it at the same budget")
    metrics: tuple[str, ...] | None = Field(
        None, description="null: accuracy, f1 and matthews, pearson and spearman, or what the task has in docs/tasks.md"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every draw, up to 4294967295")
    scale: float = Field(2.0, gt=0, description="alpha / r of every adapter at the start")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="in front of the adapters")
    model_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout inside the base model; null: as its config says"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; adapters and scores are fp32"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    group_by_length: bool = Field(True, description="batches of similar length: less padding")
    checkpoint_every: int = Field(50, ge=1, description="optimizer steps between checkpoints")
    log_every: int = Field(10, ge=1, description="optimizer steps between logged losses")
    report_to: str = Field("none", description="tensorboard, wandb, ... as transformers names them")
    trust_remote_code: bool = Field(False, description="let the code that comes with a hub model run")
    scoring: ScoringSection = ScoringSection()
    calibration: CalibrationSection = CalibrationSection()
    allocation: RankOptions = RankOptions()
    pruning: TrainingBatchChoices = TrainingBatchChoices()
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    resolved: dict[str, Any] | None = Field(None, description="written by lorank into the recipe of a run; not read")

    def __init__(self, **content: Any) -> None:
        try:
            super().__init__(**with_preset(content))
        except ValidationError as error:
            raise RecipeError(explain(error, Recipe)) from None

    @field_validator("budget", mode="before")
    @classmethod
    def _readable_budget(cls, value: Any) -> Any:
        try:
            return str(Budget.parse(value))
        except BudgetError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _choices_agree(self) -> "Recipe":
        problems = [
            f"{key}: method {name!r} is unknown{nearest(name, METHODS)}; allowed: {', '.join(METHODS)}"
            for key, name in (("method", self.method), *(("baselines", name) for name in self.baselines))
            if name not in METHODS
        ]
        if self.scoring.when == "after" and (
            self.stage1.stop_when_stable is not None or self.stage1.pruning == "cubic"
        ):
            problems.append("scoring.when 'after' leaves no scores to stop or prune stage 1 by; use 'during'")
        for key, section in (("stage1", self.stage1), ("stage2", self.stage2)):
            if section.scheduler not in SCHEDULERS:
                hint = nearest(section.scheduler, SCHEDULERS)
                problems.append(
                    f"{key}.scheduler {section.scheduler!r} is unknown{hint}; allowed: {', '.join(SCHEDULERS)}"
                )
        limits = self.allocation
        if limits.max_rank is not None and limits.max_rank < limits.min_rank:
            problems.append(f"allocation.max_rank {limits.max_rank} is below allocation.min_rank {limits.min_rank}")
        problems += self._foreign_sections()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _foreign_sections(self) -> list[str]:
        """What is said about sections that are not for the recipe's method."""
        if self.method not in METHODS:
            return []
        problems, method = [], METHODS[self.method]
        if method.allocates_in_training and not method.has_scoring_set:
            try:
                check_ranks(self.pruning, self.allocation)
            except ValueError as error:
                problems.append(str(error))
        elif self.pruning != TrainingBatchChoices():
            problems.append(f"pruning is for methods that prune while they train, {self.method} does not; leave it out")
        if self.stage2.skip and not method.has_scoring_set:
            problems.append(
                f"stage2.skip keeps what stage 1 has trained, {self.method} has no such stage; leave it out"
            )
        return problems

    @property
    def read_budget(self) -> Budget:
        """The budget, read."""
        return Budget.parse(self.budget)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`stage2.epochs=1`; values are YAML).

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest valid one), a bad value.

    """
    return make_recipe(read_recipe(path, overrides))


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The content of a YAML recipe with its overrides, as it was written: presets are not filled in, nothing is validated.

    Raises:
        RecipeError: no such file, not YAML, or an override that cannot be read.

    """
    path = Path(path)
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; give a YAML file as the recipe, for example {path / 'recipe.yaml'}")
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe; give a YAML file, for example examples/quickstart.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8, at byte {error.start:,}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {type(content).__name__}")
    for override in overrides:
        keys, value = read_override(override)
        _set(content, keys, value)
    return content


def read_override(override: str) -> tuple[list[str], Any]:
    """Keys and value of `stage2.epochs=1`.

    Raises:
        RecipeError: not of that form, or the value is not YAML.

    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form key=value, for example stage2.epochs=1")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {one_line(error)}") from None


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Validate a recipe. The preset of its method fills in what the recipe leaves out.

    Raises:
        RecipeError: as `load_recipe`.

    """
    return Recipe(**content)


def with_preset(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe, and what its preset says besides.

    Raises:
        RecipeError: the method has no such preset.

    """
    filled, method = dict(content), METHODS.get(str(content.get("method", "i-lora")))
    if method is None:
        return filled
    preset = filled["preset"] = preset_of(method, content.get("preset"))
    for section, choices in sections_of(method, method.presets[preset]).items():
        own = content.get(section)
        if isinstance(own, BaseModel):
            own = own.model_dump(exclude_unset=True)
        if own is None or isinstance(own, Mapping):
            filled[section] = {**choices, **(own or {})}
    return filled


def sections_of(method: Method, preset: Preset) -> dict[str, dict[str, Any]]:
    """A preset as the sections that say the same."""
    ranks = {"allocation": dict(preset.ranks)} if preset.ranks else {}
    if not preset.options:
        return ranks
    if not method.has_scoring_set:
        return {("pruning" if method.allocates_in_training else "calibration"): dict(preset.options), **ranks}
    scoring = {key: value for key, value in preset.options.items() if key in ScoringSection.model_fields}
    stage1 = {"pruning" if key == "curve" else key: v for key, v in preset.options.items() if key not in scoring}
    return {"scoring": scoring, "stage1": stage1, **ranks}


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = content[key] = {}
        content = inner
    content[keys[-1]] = value
