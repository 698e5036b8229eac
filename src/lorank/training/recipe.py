"""The recipe: everything that decides a run, as YAML, with `key=value` overrides. Unknown keys are refused."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from transformers import SchedulerType

from lorank.allocation.top_b import RankBy, Scope
from lorank.budget import Budget
from lorank.errors import BudgetError, RecipeError
from lorank.methods import METHODS, Method
from lorank.scoring.options import PathScoreOptions
from lorank.training.pruning import PruningOptions

# `reduce_lr_on_plateau` would need an evaluation while training, on data that is kept for the end.
SCHEDULERS = tuple(
    scheduler.value for scheduler in SchedulerType if scheduler.value not in ("reduce_lr_on_plateau", "greedy")
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Where examples come from: two files, or a hub name with two splits."""

    train: str | None = Field(None, description="csv, tsv (quotes are text), jsonl or parquet file to train on")
    test: str | None = Field(None, description="file that is evaluated once at the end; never scored or stopped on")
    name: str | None = Field(None, description="hub name instead of files, for example nyu-mll/glue")
    config: str | None = Field(None, description="configuration of the hub data set, for example cola")
    train_split: str = Field("train", description="split of the hub data set to train on")
    test_split: str = Field("validation", description="split that is evaluated once at the end")
    text: tuple[str, ...] = Field(("text",), min_length=1, max_length=2, description="one or two text columns")
    label: str = Field("label", description="label column")
    task: Literal["classification", "regression"] = Field("classification", description="what the label is")
    max_length: int = Field(128, ge=8, description="longer texts are cut, in tokens")

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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


class AllocationSection(_Section):
    """How scores become ranks."""

    rank_by: RankBy = Field("score", description="what a unit of rank is worth")
    scope: Scope = Field(
        "global", description="A6: one threshold for all modules, or a share of the budget for each layer"
    )
    max_rank: int | None = Field(None, ge=1, description="upper limit for every module")
    min_rank: int = Field(0, ge=0, description="lower limit for every module; at 0 a module may get no adapter")
    multiple_of: int = Field(1, ge=1, description="every rank is a multiple of this")


class StopWhenStable(_Section):
    """End stage 1 when `windows` windows in a row each moved less than `share` of the plan's parameters."""

    share: float = Field(0.05, gt=0, le=1, description="of the parameters of the cut that would be made now")
    window: int = Field(10, ge=1, description="scoring batches in a window")
    windows: int = Field(2, ge=1, description="how many stable windows in a row end the stage")


class TrainingSection(_Section):
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

    scale_by: Literal["initial", "target", "active"] = Field(
        "initial",
        description="A13: alpha / r with r the initial rank (same scale as stage 1), the plan's mean, or the module's own",
    )


class Recipe(_Section):
    """A whole run. `seed` decides every draw; on CPU a recipe gives the same bits each time."""

    model: str = Field(description="hub name or folder of the base model")
    method: str = Field("i-lora", description="i-lora, igu-lora, adalora, or lora for uniform ranks")
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
        None, description="null: accuracy, f1 and matthews, or pearson and spearman"
    )
    seed: int = Field(0, description="of every draw")
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
    allocation: AllocationSection = AllocationSection()
    pruning: PruningOptions = PruningOptions()
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    resolved: dict[str, Any] | None = Field(None, description="written by lorank into the recipe of a run; not read")

    @field_validator("budget", mode="before")
    @classmethod
    def _readable_budget(cls, value: Any) -> Any:
        try:
            return str(Budget.parse(value))
        except BudgetError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _choices_agree(self) -> "Recipe":
        for name in (self.method, *self.baselines):
            if name not in METHODS:
                raise ValueError(f"method {name!r} is unknown{_nearest(name, METHODS)}; allowed: {', '.join(METHODS)}")
        if self.scoring.when == "after" and (
            self.stage1.stop_when_stable is not None or self.stage1.pruning == "cubic"
        ):
            raise ValueError("scoring.when 'after' leaves no scores to stop or prune stage 1 by; use 'during'")
        for section in (self.stage1, self.stage2):
            if section.scheduler not in SCHEDULERS:
                hint = _nearest(section.scheduler, SCHEDULERS)
                raise ValueError(f"scheduler {section.scheduler!r} is unknown{hint}; allowed: {', '.join(SCHEDULERS)}")
        if METHODS[self.method].trained == "pruned triplets":
            check_limits(self.pruning, self.allocation)
        limits = self.allocation
        if limits.max_rank is not None and limits.max_rank < limits.min_rank:
            raise ValueError(f"allocation.max_rank {limits.max_rank} is below allocation.min_rank {limits.min_rank}")
        return self

    @property
    def read_budget(self) -> Budget:
        """The budget, read."""
        return Budget.parse(self.budget)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`stage2.epochs=1`; values are YAML).

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest valid one), a bad value.

    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe; give a YAML file, for example examples/quickstart.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {type(content).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"override {override!r} is not of the form key=value, for example stage2.epochs=1")
        try:
            _set(content, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from None
    return make_recipe(content)


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Validate a recipe. The preset of its method fills in what the recipe leaves out.

    Raises:
        RecipeError: as `load_recipe`.

    """
    method = METHODS.get(str(content.get("method", "i-lora")))
    filled = dict(content)
    if method is not None:
        preset = filled["preset"] = _preset(method, content.get("preset"))
        for section, choices in method.presets[preset].items():
            own = content.get(section)
            if own is None or isinstance(own, Mapping):
                filled[section] = {**choices, **(own or {})}
    try:
        return Recipe(**filled)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(problem) for problem in error.errors())) from None


def choose_options(
    method: str, preset: str | None, options: Mapping[str, Any]
) -> tuple[str, PruningOptions, dict[str, Any]]:
    """Options of allocation during training: the preset's, and over them those given.

    Returns:
        The preset's name, the pruning options, and the limits of the last cut.

    Raises:
        RecipeError: a method that does not allocate while it trains, an unknown preset or key, a bad value.

    """
    known = [name for name, one in METHODS.items() if one.trained == "pruned triplets"]
    if method not in known:
        raise RecipeError(
            f"method {method!r} does not allocate while it trains{_nearest(method, known)}; allowed: {', '.join(known)}"
        )
    chosen = _preset(METHODS[method], preset)
    sections = METHODS[method].presets[chosen]
    limits = {key: value for key, value in options.items() if key in AllocationSection.model_fields}
    pruning = {key: value for key, value in options.items() if key not in limits}
    allowed = [*PruningOptions.model_fields, *AllocationSection.model_fields]
    for key in pruning:
        if key not in allowed:
            raise RecipeError(f"{key}: unknown option{_nearest(key, allowed)}; allowed: {', '.join(allowed)}")
    try:
        own = PruningOptions(**{**sections.get("pruning", {}), **pruning})
        section = AllocationSection(**{**sections.get("allocation", {}), **limits})
        check_limits(own, section)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(problem) for problem in error.errors())) from None
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return chosen, own, section.model_dump()


def check_limits(pruning: PruningOptions, limits: AllocationSection) -> None:
    """Refuse limits that a cut counted in ranks does not look at.

    Raises:
        ValueError: names them.

    """
    if pruning.budget_in == "ranks" and (limits.max_rank, limits.multiple_of, limits.scope) != (None, 1, "global"):
        raise ValueError(
            "allocation.max_rank, multiple_of and scope are for pruning.budget_in: parameters; leave them out"
        )


def _preset(method: Method, preset: Any) -> str:
    chosen = preset or method.default_preset
    if chosen not in method.presets:
        hint = _nearest(str(chosen), method.presets)
        raise RecipeError(f"preset {chosen!r} of {method.name} is unknown{hint}; allowed: {', '.join(method.presets)}")
    return str(chosen)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = content[key] = {}
        content = inner
    content[keys[-1]] = value


def _explain(problem: Any) -> str:
    """Turn one pydantic problem into: key, what was got, what is allowed."""
    location = [str(part) for part in problem["loc"] if not str(part).startswith(("function-", "tuple["))]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(Recipe)
        siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"{key}: unknown key{_nearest(key, siblings) or _nearest(location[-1], known)}"
    if problem["type"] == "missing":
        return f"{key}: missing; every recipe needs it"
    reason = problem["msg"].removeprefix("Value error, ")
    got = "" if problem["type"] == "value_error" else f" (got {problem['input']!r})"
    return f"{key or 'recipe'}: {reason}{got}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def _nearest(got: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing; a key's last part alone may match too."""
    options = list(known)
    near = get_close_matches(got, options, 1, 0.6)
    if not near:
        tails = {option.rpartition(".")[2]: option for option in options}
        near = [tails[tail] for tail in get_close_matches(got.rpartition(".")[2], list(tails), 1, 0.6)]
    return f" (did you mean {near[0]}?)" if near else ""
