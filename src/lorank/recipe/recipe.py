"""The recipe: everything that decides a run. Unknown keys are refused."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_serializer

from lorank.budget import Budget, read_budgets
from lorank.engine.options import RankOptions, ScoringSetChoices, TrainingBatchChoices
from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.methods.choose import check_experts, choices_in
from lorank.methods.registry import FULL, unknown_method
from lorank.methods.uniform import UNIFORM
from lorank.recipe.budget_key import readable_budget
from lorank.recipe.lengths import OF_TRAIN, problems_of_lengths
from lorank.recipe.method_sections import filled_sections, full_sections, inherited, without_expert
from lorank.recipe.search_length import search_epochs, search_steps
from lorank.recipe.sections import CHOICES, InitialRank, ModelSection, PlanScale, SearchSection, TrainingSection
from lorank.recipe.unknown_keys import choice_keys, without_unknown
from lorank.tasks.section import DataSection
from lorank.validation import Names, Section, explain


class Recipe(Section):
    """A whole run. `seed` decides every draw; on CPU a recipe gives the same bits each time.

    Read one from a file with `lorank.load_recipe(path, overrides)`, or make it of the same keys: `Recipe(model=..., budget="r=2",
    data={"train": ..., "test": ...}, train={"epochs": 1})`. The preset of its method fills in what is left out.
    docs/recipe.md says what every key means.

    Raises:
        RecipeError: an unknown key (with the nearest valid one), a bad value, or no such preset; all findings at once.

    """

    format: Literal[2] = Field(2, description="of recipes; `lorank recipe upgrade` converts those of format 1")
    model: ModelSection
    method: str = Field("i-lora", description="who decides the ranks, see `lorank methods`; lora is uniform ranks")
    preset: str | None = Field(None, description="named choices of the method; null: its default")
    budget: str | dict[str, str] = Field(
        description="adapter parameters: 0.33M, 0.06%, r=2, rank=144, keep=50% or beta=0.5; or one for each group of modules, "
        "`{vision_model: r=2, language_model: 20M}`"
    )
    data: DataSection
    target_modules: str | tuple[str, ...] | None = Field(
        None,
        description="names of modules (or their ends), or a regular expression; null: every linear layer of the blocks",
    )
    exclude_modules: str | tuple[str, ...] | None = Field(
        None, description="which of them are left out: names or their ends, or a regular expression"
    )
    target_parameters: str | tuple[str, ...] | None = Field(
        None,
        description="parameters of fused experts that get ranks too: all-experts, names (or their ends), or a regular expression",
    )
    baselines: Mapping[str, Mapping[str, Any]] = Field(
        {},
        description="methods trained and evaluated beside it at the same budget, and full, which trains every weight: names, or "
        "names with sections of their own",
    )
    metrics: Names | None = Field(
        None, description="null: accuracy, f1 and matthews, pearson and spearman, or what the task has in docs/tasks.md"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every draw, up to 4294967295")
    scale: float = Field(2.0, gt=0, description="alpha / r of every adapter at the start")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="in front of the adapters")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; adapters and scores are fp32"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    group_by_length: bool = Field(True, description="batches of similar length: less padding")
    checkpoint_every: int = Field(50, ge=1, description="optimizer steps between checkpoints")
    log_every: int = Field(10, ge=1, description="optimizer steps between logged losses")
    report_to: str = Field("none", description="tensorboard, wandb, ... as transformers names them")
    triplets: SerializeAsAny[InitialRank] = InitialRank()
    measure: SerializeAsAny[Section] | None = None
    smooth: SerializeAsAny[Section] | None = None
    cut: SerializeAsAny[Section] | None = None
    ranks: RankOptions = RankOptions()
    start: SerializeAsAny[PlanScale] = PlanScale()
    train: TrainingSection = TrainingSection()
    search: SearchSection | None = Field(
        None,
        description="the first stage, which decides the ranks and is thrown away, of methods that have one; what it leaves out "
        "is as in train, but for its length: see search.share",
    )
    resolved: dict[str, Any] | None = Field(None, description="written by lorank into the recipe of a run; not read")

    def __init__(self, **content: Any) -> None:
        content, unknown = without_unknown(content, Recipe.model_fields)
        content = {key: value for key, value in content.items() if value is not None or key not in ("train", "expert")}
        name = content.get("method", "i-lora")
        method = METHODS.get(str(name))
        if method is not None:
            content, problems = filled_sections(method, content)
        else:  # what its sections may say is not known either
            problems = []
            content = {key: value for key, value in content.items() if key not in (*CHOICES, "expert")}
        try:
            super().__init__(**content)
        except ValidationError as error:
            other = [f"method: {unknown_method(name)}"] if method is None and isinstance(name, str) else []
            problems = [*problems, *other, explain(error, Recipe, choice_keys(method))]
        else:
            problems += self._disagreements(None if problems or unknown else method)
        if problems := [*unknown, *problems]:
            raise RecipeError("\n".join(problems))

    @field_validator("model", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("search", mode="before")
    @classmethod
    def _stage_as_search(cls, value: Any) -> Any:
        return value.model_dump(exclude_unset=True) if type(value) is TrainingSection else value

    @field_validator("baselines", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: _plain(sections) for name, sections in value.items()}
        if isinstance(value, list | tuple):
            if all(isinstance(name, str) for name in value):
                return {name: {} for name in value}
            raise ValueError("give names, or names with sections of their own: {eva: {measure: {examples: 64}}}")
        return value

    @field_validator("budget", mode="before")
    @classmethod
    def _readable_budget(cls, value: Any) -> str | dict[str, str]:
        return readable_budget(value)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        content = without_expert(handler(self))
        if isinstance(content.get("search"), dict) and self.search is not None:
            # What it leaves out is as in train.
            content["search"] = {
                key: content["search"][key] for key in self.search.model_fields_set if key in content["search"]
            }
        return content

    def _disagreements(self, method: Method | None) -> list[str]:
        """What is wrong though every key is right."""
        problems = [
            f"baselines: {unknown_method(name, (*METHODS, FULL))}"
            for name in self.baselines
            if name not in (*METHODS, FULL)
        ]
        if self.method not in METHODS:
            problems.insert(0, f"method: {unknown_method(self.method)}")
        if self.method in self.baselines:
            problems.append(f"baselines: {self.method} is the recipe's method already; leave it out")
        if self.target_parameters is not None:
            if self.lora_dropout:
                problems.append("lora_dropout: cannot be had for target_parameters, in PEFT; set it to 0")
            try:
                check_experts(self.method, self.measure)
            except RecipeError as error:
                problems.append(str(error))
        if self.model.classifier_dropout is not None and self.data.writes:
            problems.append(f"model.classifier_dropout: a model for {self.data.task} has no classifier; leave it out")
        cuts = self.method in METHODS and self.keeps_triplets
        problems += problems_of_lengths(self.data, self.train, self.search, cuts=self.method if cuts else None)
        limits = self.ranks
        if method is not None and method.looks_at == "nothing":
            own = [key for key in ("rank_by", "scope") if getattr(limits, key) != RankOptions.model_fields[key].default]
            problems += [f"ranks.{key}: method {self.method} gives equal ranks; leave it out" for key in own]
        if limits.max_rank is not None and limits.max_rank < limits.min_rank:
            problems.append(f"ranks.max_rank {limits.max_rank} is below ranks.min_rank {limits.min_rank}")
        if problems or method is None:
            return problems
        try:
            self.choices()
        except ValidationError as error:
            problems.append(explain(error, type(method.default)).removeprefix("recipe: "))
        recipes = [self]
        for name in self.baselines:
            try:
                recipes.append(self.of(name))
            except RecipeError as error:
                problems += [f"baselines.{name}.{line}" for line in str(error).splitlines()]
        if self.keeps_triplets and self.start.scale_by != "initial":
            problems.append(
                f"start.scale_by {self.start.scale_by}: {self.method} keeps the triplets that it trained, with their scale, "
                "whatever rank is left; give it start.scale_by=initial (a baseline in a section of its own: "
                f"baselines: {{{self.method}: {{start: {{scale_by: initial}}}}}}), or train a fresh adapter (start.factors=fresh)"
            )
        if not problems and self.search is not None and not any(one.has_search for one in recipes):
            problems.append(
                "search: no method here has a first stage that is thrown away; the stage of the adapter is `train`, leave search "
                "out (search=null)"
            )
        return problems

    def choices(self) -> TrainingBatchChoices | ScoringSetChoices | None:
        """The choices of a method that allocates while it trains; None for others."""
        preset = METHODS[self.method].default
        if not isinstance(preset, TrainingBatchChoices | ScoringSetChoices):
            return None
        made = {}
        for name, options in choices_in(preset).items():
            own = getattr(self, name).model_dump(exclude_unset=True)
            made[name] = type(options)(**{key: own[key] for key in own if key in type(options).model_fields})
        return type(preset)(**made)

    @property
    def has_search(self) -> bool:
        """Whether a first stage decides the ranks and is thrown away."""
        return METHODS[self.method].allocates_in_training and getattr(self.start, "factors", "kept") == "fresh"

    @property
    def keeps_triplets(self) -> bool:
        """Whether the triplets that decide the ranks become the adapter that is served."""
        return METHODS[self.method].allocates_in_training and not self.has_search

    @property
    def deciding_stage(self) -> TrainingSection:
        """The stage that decides the ranks, of a method that allocates while it trains.

        Where `search_share` decides its length and `train` is counted in epochs, that is about right; `lorank run` works it out
        when the data are loaded, and writes `search.max_steps` into its recipe.
        """
        share = self.search_share
        if not self.has_search or (self.search is None and share is None):
            return self.train
        own = {} if self.search is None else self.search.model_dump(exclude_unset=True, exclude={"share"})
        stage = TrainingSection(**{**self.train.model_dump(exclude_unset=True, exclude={*OF_TRAIN}), **own})
        if share is None:
            return stage
        if (steps := self.train.max_steps) is not None:
            length: dict[str, Any] = {"max_steps": search_steps(stage, self.train, self.measure, share, steps)}
        else:
            length = {"epochs": search_epochs(stage, self.train, self.measure, share)}
        return stage.model_copy(update=length)

    @property
    def search_share(self) -> float | None:
        """What the search may cost, as a share of `train`; None where the recipe says its length, or it is as long as `train`.

        The record of a run (`resolved`) says the length, unless it was written by a version that knew no share.
        """
        search = self.search or SearchSection()
        if not self.has_search or search.says_length:
            return None
        if "share" in search.model_fields_set or self.resolved is not None:
            return search.share
        return METHODS[self.method].search_share.get(str(self.preset))

    def of(self, method: str) -> "Recipe":
        """The recipe of a baseline: what all methods share, the default preset of this one, and its own sections.

        Shared are model, data, budget, `train`, `search`, and of the choices `triplets.initial_rank`, `start.scale_by`, and the
        limits of `ranks`. A baseline that keeps its triplets trains them at the learning rate of `search`, where there is one:
        triplets need another rate than the factors of a LoRA. `full`, full fine-tuning, is a recipe of uniform LoRA of which only
        `train` counts; its learning rate is 5e-5 unless its own sections say another.

        Raises:
            RecipeError: sections of the baseline that cannot be read.

        """
        if method == self.method:
            return self
        if method == FULL:
            whole = full_sections(self.baselines.get(FULL, {}))
            return Recipe(**inherited(self.model_dump(exclude_unset=True), UNIFORM.name, whole))
        own: Mapping[str, Any] = self.baselines.get(method, {})
        if self.resolved is not None and METHODS[method].earlier_default:  # a record of this version names the preset
            own = {"preset": METHODS[method].earlier_default, **own}
        made = inherited(self.model_dump(exclude_unset=True), method, own)
        return Recipe(**made, **({} if self.resolved is None else {"resolved": self.resolved}))

    @property
    def read_budget(self) -> Budget:
        """The budget, read.

        Raises:
            BudgetError: it is one for each of several groups.

        """
        return Budget.parse(self.budget)

    @property
    def read_budgets(self) -> Budget | dict[str, Budget]:
        """The budget, or that of each group of modules, read."""
        return read_budgets(self.budget)


def _plain(sections: Any) -> Any:
    """Sections of a baseline as keys and values, also where they are objects."""
    if not isinstance(sections, Mapping):
        return sections or {}
    return {
        key: value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        for key, value in sections.items()
    }
