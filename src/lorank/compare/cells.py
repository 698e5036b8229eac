"""A cell of a comparison: one method, budget and seed on one task; and what a finished cell has measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorank.artefact import checksum, read_json, write_json
from lorank.errors import ComparisonError, RecipeError
from lorank.methods import METHODS
from lorank.methods.plugins import plugin_of
from lorank.methods.registry import FULL, unknown_method
from lorank.received_files import record_of
from lorank.recipe.files import make_recipe
from lorank.recipe.format1 import is_format_1
from lorank.recipe.method_sections import full_sections, inherited, merged
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import OWN_KEYS

# What is compared beside rank-allocation methods, and what for.
CONTROLS: Mapping[str, str] = {
    "shuffled": "the plan of the recipe's method, its ranks shuffled among modules of equal cost: does it matter which module?",
    "equal-compute": "the recipe's method with its training shortened by what search and scoring cost: is it worth its price?",
    "uniform-triplets": "training with allocation where every module ends at the uniform rank: is it the ranks, or the training?",
    "svd-truncate": "uniform LoRA at the initial rank, cut to the budget by singular values: does planning matter?",
    FULL: "full fine-tuning: what is there to gain?",
}
BASELINE = "lora"
# Controls that train the plan of the recipe's method, once that is there.
FROM_PLAN = ("shuffled", "equal-compute")
# Controls with the choices and the learning rate of the method that they are controls of.
BORROWING = (*FROM_PLAN, "uniform-triplets")
# In the folder of a cell: what is asked for, what was measured, why there is nothing.
ORDER, RESULT, ERROR = "cell.json", "result.json", "error.txt"

# Of the training that is judged: the same for every method of a task.
SAME = (
    *("epochs", "max_steps", "batch_size", "gradient_accumulation"),
    *("warmup", "scheduler", "weight_decay", "max_grad_norm", "optimizer", "on_nonfinite"),
)


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        task: name of the recipe.
        budget: as it was asked for.
        method: of `METHODS` or `CONTROLS`.
        seed: of the run.

    """

    task: str
    budget: str
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where it works, below the grid's folder."""
        return Path(self.task) / self.budget.replace("/", "-") / self.method / f"seed-{self.seed}"


@dataclass(frozen=True)
class Measured:
    """What a cell has measured.

    Attributes:
        metrics: name -> value on the test part; None where it is not defined.
        loss: mean loss on the test part.
        parameters: adapter parameters (of `full`: all that were trained, but the head).
        scale: `alpha / r` of the adapters at the start; None for `full`.
        steps: optimizer steps of the training that the metrics are of.
        tokens: training tokens of these steps.
        seconds: of that training.
        before: seconds of what came before it: search, scoring, or the training of what is cut.
        steps_before: what the plan cost, before that training or in it: optimizer steps and passes over scoring batches.
        peak_bytes: largest memory of the process (of the GPU, where there is one).
        data: SHA-256 of the training and test examples.
        base: sum of the base model's files or commit; empty in results of earlier versions.
        plan: of controls that train a plan: SHA-256 of its file.
        uncut: metrics before the cut, of what is cut after its training.
        plugin: SHA-256 of the file that its method is from; None for a method of lorank or of an installed package.
        general_text: of decoders with `data.general_text`: `loss` of a token of it, and the base model's `base loss`.
        wall: seconds from the start of the cell's process to its end, imports, loading and evaluation among them; of one that
            was continued, the last process. 0 in results of earlier versions.
        skipped: of `steps`, and of those of a search, how many were left out (`on_nonfinite: skip`).

    """

    metrics: Mapping[str, float | None]
    loss: float | None
    parameters: int
    scale: float | None
    steps: int
    tokens: int
    seconds: float
    before: float = 0.0
    steps_before: int = 0
    peak_bytes: int = 0
    data: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    plan: str | None = None
    uncut: Mapping[str, float | None] | None = None
    plugin: str | None = None
    general_text: Mapping[str, float] | None = None
    wall: float = 0.0
    skipped: int = 0


def cells_of(
    tasks: Sequence[str],
    budgets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    against: str | None = BASELINE,
) -> Iterator[Cell]:
    """All cells, seed by seed; controls that need a plan come last.

    Args:
        tasks: names of recipes.
        budgets: as they are asked for.
        methods: of `METHODS` and `CONTROLS`.
        seeds: of the runs.
        against: the method that has to be among them, because the others are compared with it; None: none.

    Raises:
        ComparisonError: an unknown method, or nothing to compare with.

    """
    known = (*METHODS, *CONTROLS)
    methods, budgets = list(dict.fromkeys(methods)), list(dict.fromkeys(budgets))
    for name in methods:
        if name not in known:
            raise ComparisonError(unknown_method(name, known))
    if against is not None and against not in methods:
        raise ComparisonError(f"differences are to uniform LoRA; add {against} to the methods")
    order = sorted(methods, key=lambda name: name in FROM_PLAN)
    for seed in seeds:
        for task in tasks:
            for budget in budgets:
                for method in order:
                    yield Cell(task, budget, method, seed)


def budget_of(content: Mapping[str, Any]) -> str:
    """The budget of a task's recipe, as it was written.

    Raises:
        ComparisonError: it is one for each of several groups of modules.

    """
    budget = content.get("budget", "r=8")
    if isinstance(budget, Mapping):
        raise ComparisonError(
            f"the recipe has a budget for each of {len(budget)} groups of modules, and a comparison gives every method one "
            "number of parameters; give --budgets, or recipes with one budget"
        )
    return str(budget)


def recipe_of(
    content: Mapping[str, Any], cell: Cell, own: Mapping[str, Any] | None = None, parameters: int | None = None
) -> Recipe:
    """The recipe of a cell: the task's, with this method, budget and seed, and the method's own choices.

    What the recipe says of the choices of its method is for that method; others use their presets, and what the recipe gives them
    under `baselines`. A method that allocates while it trains does so for as long as the others train their adapters (`train`),
    and counts in parameters.

    Args:
        content: of the task's recipe, as it was written.
        cell: which one.
        own: keys and values for this method only, over the recipe's.
        parameters: what the budget means on this task: methods read `r=2` differently (an average rank, a uniform one), a
            number they all read alike. None keeps the budget's own words, for the method whose units `keep=50%` counts.

    Raises:
        RecipeError: a key or value that is not allowed.

    """
    first = str(content.get("method", "i-lora"))
    if strange := [key for key in own or {} if key not in OWN_KEYS]:
        if is_format_1(own or {}):
            raise ComparisonError(
                f"{cell.method}:{strange[0]} is of recipe format 1; its new name is in docs/recipe.md"
            )
        raise ComparisonError(
            f"{cell.method}:{strange[0]} would make this method's cells unequal to the others'; allowed: {', '.join(OWN_KEYS)}"
        )
    method = source_of(content, cell.method)
    if method == first:
        kept = dict(content)
    else:
        baselines = content.get("baselines") or {}
        shared = {key: value for key, value in content.items() if key != "ranks"}
        kept = inherited(shared, method, (baselines.get(method) or {}) if isinstance(baselines, Mapping) else {})
    if cell.method in FROM_PLAN and isinstance(kept.get("start"), Mapping):
        kept["start"] = {key: value for key, value in kept["start"].items() if key != "factors"}
    chosen: dict[str, Any] = {**kept, "method": method, "seed": cell.seed, "baselines": []}
    chosen["budget"] = str(parameters or cell.budget)
    if allocates_in_training(method):
        # Counted in ranks, as the papers do, a budget is spent to within some percent of parameters only.
        chosen["cut"] = merged(kept.get("cut") or {}, {"budget_in": "parameters", "fill": True, "cost_weights": {}})
    if cell.method == FULL:
        given = content.get("baselines") or {}
        chosen = merged(chosen, full_sections((given.get(FULL) if isinstance(given, Mapping) else None) or {}))
    made = merged(chosen, own or {})
    if isinstance(made.get("start"), Mapping) and made["start"].get("factors") == "kept":
        made.pop("search", None)  # with the triplets kept, `train` trains them
    return make_recipe(made)


def source_of(content: Mapping[str, Any], name: str) -> str:
    """The method that a cell is trained by: its own, or the one that it is a control of.

    Controls that train a plan take that of the recipe's method; `uniform-triplets` is trained as the recipe's method is, and as
    AdaLoRA where that one does not allocate while it trains.
    """
    first = str(content.get("method", "i-lora"))
    if name in FROM_PLAN:
        return first
    if name == "uniform-triplets":
        return first if allocates_in_training(first) else "adalora"
    return BASELINE if name in CONTROLS else name


def allocates_in_training(method: str) -> bool:
    """Whether triplets are trained and pruned at once; not so for names that are no method."""
    return method in METHODS and METHODS[method].allocates_in_training and not METHODS[method].has_scoring_set


def write_measured(path: Path, measured: Measured, fingerprint: str) -> None:
    """Leave the result of a cell; it is done then."""
    content = {"format": "lorank.cell", "version": 1, "fingerprint": fingerprint, **asdict(measured)}
    write_json(path, content)


def read_measured(path: Path) -> tuple[Measured, str]:
    """The result of a finished cell, and the fingerprint of what it was asked for.

    Raises:
        ComparisonError: damaged.

    """
    try:
        content = read_json(path)
        if content.pop("format") != "lorank.cell" or content.pop("version") != 1:
            raise ValueError("another format")
        fingerprint = str(content.pop("fingerprint"))
        return record_of(Measured, content), fingerprint
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ComparisonError(f"{path}: damaged ({error}); remove it to run the cell again") from None


def fingerprint_of(recipe: Recipe, cell: Cell) -> str:
    """What decides a cell's numbers, as one sum: the resolved recipe, which cell it is, and the file that its method is from.

    Defaults are left out, so that a key which a later version adds does not make finished cells another recipe's. A default that
    a later version changes goes unnoticed: a grid should be finished by the version that began it. The dtype of the base model
    is no such default: fp32, which all cells of earlier versions were trained in, is left out, and any other is named.
    """
    content = recipe.model_dump(mode="json", exclude={"resolved"}, exclude_defaults=True)
    dtype = recipe.model.dtype or _dtype_of_checkpoint(recipe)
    content["model"].pop("dtype", None)
    if dtype != "fp32":
        content["model"]["dtype"] = dtype
    from_file = {"plugin": plugin.sha} if (plugin := plugin_of(recipe.method)) else {}
    return checksum({"cell": asdict(cell), "recipe": content, **from_file})


def _dtype_of_checkpoint(recipe: Recipe) -> str:
    from lorank.models.base_dtype import dtype_of_checkpoint
    from lorank.models.loading import config_of
    from lorank.runs.recipe_values import pretrained_of

    try:
        return dtype_of_checkpoint(config_of(pretrained_of(recipe)))
    except RecipeError:  # no such model, so the cell cannot run either
        return "fp32"
