"""The sections of a recipe: the model, the choices of its method, and the stages of training."""

from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import Field, create_model, field_validator, model_validator

from lorank.engine.options import ScoringSetOptions, StartOptions, TripletOptions
from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.methods.choose import choices_in
from lorank.recipe.optimizers import CUT_WITH_RANKS, known_optimizer
from lorank.scoring.options import CalibrationOptions
from lorank.validation import Section, nearest

# transformers' schedules (a test compares the names), but for those that would need an evaluation while training, on data that
# is kept for the end.
SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    *("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"),
)

# Options that no preset and no recipe of ours sets: in a recipe they are under `expert`, by the section that they belong to.
EXPERT: dict[str, frozenset[str]] = {
    "triplets": frozenset(("orthogonality_added",)),
    "measure": frozenset(
        (
            *("baseline", "granularity", "vector_reduction", "dropout", "source", "when", "tolerance"),
            *("folds", "probes", "modules_at_once", "components"),
        )
    ),
    "smooth": frozenset(("accumulate", "ema_decay", "mean_decay", "deviation_decay", "epsilon", "ucb_weight")),
    "cut": frozenset(("shrink",)),
}
CHOICES = ("triplets", "measure", "smooth", "cut", "ranks", "start")
# What a baseline may have of its own; anything else decides what has to be equal.
OWN_KEYS = ("preset", *CHOICES, "expert", "search", "train")
# In `lorank run` a budget too, which then is not equal, as in the tables of papers; `lorank compare` leaves it out and says so.
BASELINE_KEYS = (*OWN_KEYS, "budget")


def written_key(section: str, key: str) -> str:
    """An option as a recipe writes it: `smooth.window`, `expert.smooth.epsilon`."""
    return f"{'expert.' if key in EXPERT.get(section, ()) else ''}{section}.{key}"


class ModelSection(Section):
    """The base model. A recipe may give its name alone."""

    name: str = Field(description="hub name or folder of the base model")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout inside the base model; null: as its config says"
    )
    classifier_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout in front of the head of a classifier; null: as its config says"
    )
    trust_remote_code: bool = Field(False, description="let the code that comes with a hub model run")
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None,
        description="of the base model's weights; null: as the checkpoint's config says (fp32 where it names none of the three); "
        "adapters, heads, scores and the optimizer are fp32",
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None,
        description="of the base model, by bitsandbytes: 4bit is nf4 with double quantisation, 8bit is LLM.int8(); matrix "
        "products and all other weights are of model.dtype; FSDP shards 4bit, and 8bit is refused there",
    )
    attention: str | None = Field(
        None,
        description="transformers' attn_implementation: eager, sdpa, flash_attention_2, ...; null: transformers' choice",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model; null: the main branch")
    modules_to_save: tuple[str, ...] | None = Field(
        None,
        description="names of modules, or their ends, that train whole beside the adapters, as PEFT's: embed_tokens, lm_head; "
        "heads of classifiers do in any case; not in the budget",
    )
    new_tokens: tuple[str, ...] | None = Field(
        None,
        description="special tokens to add to the tokenizer, [<|im_start|>, <|im_end|>]; the embeddings are resized, and the new "
        "rows train",
    )


class TrainingSection(Section):
    """One stage of training, in the words of transformers' TrainingArguments."""

    epochs: float = Field(3.0, gt=0, description="times through the training data")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate")
    batch_size: int = Field(32, ge=1, description="examples in a micro-batch, on each device")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches in an optimizer step")
    warmup: Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(ge=0, lt=1)] = Field(
        0.06,
        description="share of the stage in which the learning rate rises, below 1; a whole number is optimizer steps",
    )
    scheduler: str = Field("linear", description="learning-rate schedule, by transformers' name")
    weight_decay: float = Field(0.0, ge=0, description="of the optimizer")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0 does not clip")
    optimizer: str | None = Field(
        None,
        description="by transformers' name; null: its default, AdamW. A stage that cuts ranks takes "
        f"{', '.join(CUT_WITH_RANKS)}; others also adafactor, paged_adamw_8bit, lion_8bit, ...",
    )
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1,
        description="LoRA+: learning rate of B over that of A (PEFT's create_loraplus_optimizer); for stages that train a plan",
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="when the loss or a gradient is not finite: stop ends the run; skip leaves the optimizer step out, at one "
        "host sync a step, and ends it after ten in a row, or more than ten and a tenth of the stage's steps",
    )

    eval_every: int | None = Field(
        None,
        ge=1,
        description="of train: optimizer steps between evaluations on data.eval; null: checkpoint_every",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="of train: it ends when the loss on data.eval has not fallen in so many evaluations, and the best adapter is "
        "kept (checkpoints are then made at each evaluation); null: it goes on to its end",
    )

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str | None) -> str | None:
        return None if name is None else known_optimizer(name)

    @field_validator("scheduler")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(f"{name!r} is unknown{nearest(name, SCHEDULERS)}; allowed: {', '.join(SCHEDULERS)}")
        return name


class SearchSection(TrainingSection):
    """The first stage. Its length is that of `epochs` or `max_steps`, or what `share` pays for."""

    share: float | None = Field(
        None,
        gt=0,
        description="of search without epochs and max_steps: what it may cost, scoring passes included, as a share of what train "
        "costs; left out, that of the preset; null: as long as train",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "SearchSection":
        if self.share is not None and self.says_length:
            raise ValueError("share, and epochs or max_steps, both say how long it is; leave one of them out")
        return self

    @property
    def says_length(self) -> bool:
        """Whether it has steps or epochs of its own."""
        return self.max_steps is not None or "epochs" in self.model_fields_set


class InitialRank(Section):
    """Rank before ranks are decided."""

    initial_rank: int = Field(8, ge=1, description="triplets of every module at the start; what keep=50% is half of")


class ScoringSet(Section):
    """Held out of the training data."""

    fraction: float = Field(0.1, gt=0, lt=1, description="A10: share of the training examples held out for scoring")
    scoring_batch_size: int = Field(
        32, ge=1, description="examples in a scoring batch; the last, short one is left out"
    )


class CalibrationSet(Section):
    """Drawn of the training data."""

    examples: int = Field(256, ge=1, description="training examples that are scored on; all where there are fewer")
    batch_size: int = Field(16, ge=1, description="examples at a time; changes speed and memory, not the scores")


class PlanScale(Section):
    """Scale of the adapter that is served."""

    scale_by: Literal["initial", "target", "active", "rslora"] = Field(
        "initial",
        description="A13: alpha / r with r the initial rank (one scale for all), the plan's mean, or the module's own; rslora is "
        "alpha / sqrt(r) with the module's own r; alpha is scale times the initial rank",
    )


def section_kinds(method: Method) -> dict[str, type[Section]]:
    """Section of a recipe -> its class, for the choices that the method has."""
    found: dict[str, type[Section]] = {}
    for name, options in choices_in(method.default).items():
        more = [own for kind, own in _BESIDE if isinstance(options, kind)]
        found[name] = _with(type(options), *more)
    found = {"triplets": InitialRank, "start": PlanScale, **found}
    return {name: found[name] for name in CHOICES if name in found}


def methods_with(section: str, key: str) -> list[str]:
    """Names of the methods that have an option in a section."""
    return [
        name
        for name, method in METHODS.items()
        if key in getattr(section_kinds(method).get(section), "model_fields", ())
    ]


def looks_at_calibration_set(method: Method) -> bool:
    """Whether a recipe of the method says how many examples are looked at before training."""
    return issubclass(section_kinds(method).get("measure", Section), CalibrationSet)


# What a recipe says besides the options of a choice: on which data, and what a stage starts from.
_BESIDE: tuple[tuple[type[Section], type[Section]], ...] = (
    (TripletOptions, InitialRank),
    (ScoringSetOptions, ScoringSet),
    (CalibrationOptions, CalibrationSet),
    (StartOptions, PlanScale),
)


@cache
def all_choices(kinds: tuple[tuple[str, type[Section]], ...]) -> Any:
    """A class of all sections of a method, so that all of them are validated at once."""
    return create_model("Choices", **{name: (kind, ...) for name, kind in kinds})  # type: ignore[call-overload]


@cache
def _with(kind: type[Section], *more: type[Section]) -> type[Section]:
    for own in more:
        if taken := [key for key in kind.model_fields if key in own.model_fields and key != "scoring_batch_size"]:
            raise RecipeError(
                f"{kind.__name__}.{taken[0]} is a key that recipes have already; give the option another name"
            )
    models: Any = (*more, kind)
    made: Any = create_model(kind.__name__, __base__=models, __doc__=kind.__doc__)
    return cast(type[Section], made)
