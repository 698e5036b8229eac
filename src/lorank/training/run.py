"""A whole run: hold out, stage 1, cut, stage 2, evaluate, save.

Each part leaves an artefact, and a part that has left it is not done again: the same call continues where a killed one
stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lorank.allocation.top_b import allocate, uniform_scores
from lorank.artefact import versions, write_json
from lorank.errors import BudgetError, OutputError, RecipeError, TargetError
from lorank.methods import METHODS
from lorank.plan import RankPlan
from lorank.report.rank_map import draw_rank_map
from lorank.scores import ImportanceScores
from lorank.targets import Target, find_targets, unit_costs
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.data import TaskData, load_task_data
from lorank.training.metrics import choose_metrics
from lorank.training.model import base_parameters, head_modules, load_tokenizer, load_without_weights, longest_input
from lorank.training.output import claimed, first_difference
from lorank.training.processes import processes
from lorank.training.pruned_stage import allocate_in_training, check_schedule, pruning_of
from lorank.training.recipe import Recipe
from lorank.training.scoring_set import split_for_scoring
from lorank.training.stage import training_arguments
from lorank.training.stage1 import score_units
from lorank.training.stage2 import Evaluation, evaluate_adapter, scaled_plan, train_plan


@dataclass(frozen=True)
class RunResult:
    """Where a finished run's files are, and what it measured.

    Attributes:
        directory: output directory.
        plan: of the recipe's method.
        results: method name -> metrics, adapter parameters, steps and seconds; as in metrics.json.

    """

    directory: Path
    plan: RankPlan
    results: Mapping[str, Mapping[str, Any]]


def run(recipe: Recipe, directory: str | Path, console: Console | None = None) -> RunResult:
    """Carry out a recipe in `directory`, or continue it.

    Writes `recipe.yaml`, `scores.safetensors`, `plan.json`, `adapter/`, `metrics.json` and `ranks.png`; baselines go
    under `baselines/`.

    Raises:
        LorankError: bad input, found before anything expensive; or training that cannot go on, after which the last
            checkpoint stays.

    """
    directory = Path(directory)
    console = (console or Console(stderr=True)) if processes().is_main_process else Console(quiet=True)
    targets, provenance = check_model(recipe)
    data = load_task_data(recipe.data)
    if METHODS[recipe.method].trained == "triplets":
        split_for_scoring(recipe, data.train)
    for method in (recipe.method, *recipe.baselines):
        check_schedule(recipe, method, len(data.train))
    work = _Work(recipe, data, targets, load_tokenizer(recipe), console, provenance)
    results: dict[str, dict[str, Any]] = {}
    with claimed(directory, recipe, data, provenance):
        for method in (recipe.method, *recipe.baselines):
            folder = directory if method == recipe.method else directory / "baselines" / method
            work.allocate_in_training(method, folder)
            scores = work.scores(method, folder)
            plan = work.plan(method, folder, scores)
            results[method] = asdict(work.evaluation(method, folder, plan))
            results[method].update(work.cost_of_scores(method, folder, scores))
        plan = RankPlan.load(directory / "plan.json")
        if processes().is_main_process:
            budget = {"asked": plan.budget, "parameters": plan.budget_parameters, "spent": plan.spent}
            found = {"budget": budget, "method": recipe.method, "preset": recipe.preset, "results": results}
            write_json(directory / "metrics.json", found)
            draw_rank_map(plan, directory / "ranks.png", rank_map_title(recipe, plan))
    return RunResult(directory, plan, results)


def rank_map_title(recipe: Recipe, plan: RankPlan) -> str:
    """Method, model, data and budget, in two lines."""
    data = recipe.data.name or Path(str(recipe.data.train)).resolve().parent.name
    where = " · ".join([Path(recipe.model).name, " ".join(filter(None, [data, recipe.data.config]))])
    spent = f"{plan.spent:,} of {plan.budget_parameters:,} parameters"
    return f"{recipe.method} ({recipe.preset}) · {where}\nbudget {plan.budget}: {spent}, total rank {plan.total_rank}"


def check_model(recipe: Recipe) -> tuple[tuple[Target, ...], dict[str, Any]]:
    """Check whatever the recipe and the model's config decide: no weights are loaded, nothing is written.

    Returns:
        The targets, and the provenance that scores and plan carry.

    Raises:
        LorankError: targets, budget, limits, metrics, text length or training options that do not fit.

    """
    choose_metrics(recipe.data.task, recipe.metrics)
    _check_training_options(recipe)
    model = load_without_weights(recipe.model, trust_remote_code=recipe.trust_remote_code, classifier=True)
    positions = longest_input(model)
    if positions is not None and recipe.data.max_length > positions:
        raise RecipeError(
            f"data.max_length is {recipe.data.max_length}, but {recipe.model} has {positions} positions; lower it"
        )
    targets = find_targets(model, recipe.targets)
    heads = tuple(f"{head}." for head in head_modules(model))
    if inside := [target.name for target in targets if f"{target.name}.".startswith(heads)]:
        raise TargetError(
            f"targets match {inside[0]!r}, part of the head, which is trained whole; name the others more closely"
        )
    costs, size = unit_costs(targets), base_parameters(model)
    initial, limits = recipe.stage1.initial_rank, recipe.allocation
    parameters = recipe.read_budget.parameters(costs, base_parameters=size, initial_rank=initial)
    most = min(initial, limits.max_rank or initial) // limits.multiple_of * limits.multiple_of
    if METHODS[recipe.method].trained != "nothing" and parameters > most * sum(costs.values()):
        raise BudgetError(
            f"budget {recipe.budget} is {parameters:,} parameters, but at most rank {most} in every module is on offer "
            f"({most * sum(costs.values()):,}); raise stage1.initial_rank (now {initial}) or allocation.max_rank, or ask for less"
        )
    provenance = {
        "model": recipe.model,
        "base_parameters": size,
        "preset": recipe.preset,
        "seed": recipe.seed,
        "versions": versions(),
    }
    for method in (recipe.method, *recipe.baselines):
        # The limits are tried on equal scores now, not after an hour of stage 1.
        units = _uniform_units(recipe, targets) if METHODS[method].trained == "nothing" else initial
        _allocate(method, recipe, uniform_scores(costs, units, provenance))
    return targets, provenance


def _check_training_options(recipe: Recipe) -> None:
    known = ("none", "all", *INTEGRATION_TO_CALLBACK)
    if recipe.report_to not in known:
        raise RecipeError(f"report_to is {recipe.report_to!r}; allowed: {', '.join(known)}")
    for name, section in (("stage1", recipe.stage1), ("stage2", recipe.stage2)):
        try:
            training_arguments(recipe, section, Path(gettempdir()))
        except (ValueError, ImportError) as error:
            raise RecipeError(f"{name}: transformers refuses these options: {error}") from None


def _uniform_units(recipe: Recipe, targets: tuple[Target, ...]) -> int:
    """Units that uniform LoRA may take in a module: it has no stage 1 that limits them, only the matrices do."""
    return max(recipe.stage1.initial_rank, min(min(target.d_in, target.d_out) for target in targets))


def _allocate(method: str, recipe: Recipe, scores: ImportanceScores) -> RankPlan:
    limits = recipe.allocation.model_dump()
    budget: str | int = recipe.budget
    if METHODS[method].trained == "nothing":
        # Uniform means equal ranks: not equal worth per parameter, and no shares by layer.
        limits |= {"rank_by": "score", "scope": "global"}
        # β is a share of what stage 1 starts with, which a method without a stage 1 knows only from the recipe.
        size, initial = scores.provenance["base_parameters"], recipe.stage1.initial_rank
        budget = recipe.read_budget.parameters(scores.unit_costs, base_parameters=size, initial_rank=initial)
    return scaled_plan(recipe, allocate(scores, budget, scale=recipe.scale, **limits))


@dataclass(frozen=True)
class _Work:
    """The parts of a run, for one method after the other; what a part has left in its folder is read back.

    The first of several processes writes; each part ends with all of them waiting for it and reading the same file.
    """

    recipe: Recipe
    data: TaskData
    targets: tuple[Target, ...]
    tokenizer: PreTrainedTokenizerBase
    console: Console
    provenance: Mapping[str, Any]

    def allocate_in_training(self, method: str, folder: Path) -> None:
        """For a method that allocates while it trains: leaves scores and plan, and the adapter if that is kept."""
        if METHODS[method].trained != "pruned triplets":
            return
        made = folder / ("plan.json" if self.retrains(method) else "adapter")
        if not (made.exists() and (folder / "plan.json").exists()):
            own = {**self.provenance, "preset": pruning_of(self.recipe, method)[0]}
            allocate_in_training(
                self.recipe, method, self.data, self.targets, self.tokenizer, folder, self.console, own
            )

    def retrains(self, method: str) -> bool:
        """Whether a second stage trains the plan from a fresh start."""
        pruned = METHODS[method].trained == "pruned triplets"
        return not pruned or pruning_of(self.recipe, method)[1].ending == "retrain"

    def cost_of_scores(self, method: str, folder: Path, scores: ImportanceScores) -> dict[str, Any]:
        """What came before, or beside, the training of the adapter."""
        made = scores.provenance
        if "stage1" in made:
            return {"stage1": {**made["stage1"], "passes": made["scoring_passes"]}}
        if METHODS[method].trained != "pruned triplets":
            return {}
        checkpoint = latest_checkpoint(folder / "stage1")
        if not self.retrains(method) or checkpoint is None:
            return {"scoring_passes": made["scoring_passes"]}
        progress = read_progress(checkpoint)
        return {"stage1": {"steps": progress.step, "seconds": progress.seconds, "passes": made["scoring_passes"]}}

    def scores(self, method: str, folder: Path) -> ImportanceScores:
        path, costs = folder / "scores.safetensors", unit_costs(self.targets)
        if not path.exists():
            if METHODS[method].trained == "triplets":
                own = {**self.provenance, "method": method, "scoring": self.recipe.scoring.model_dump()}
                directory = folder / "stage1"
                scores = score_units(self.recipe, self.data, self.targets, self.tokenizer, directory, self.console, own)
            else:
                own = {**self.provenance, "method": method, "preset": None}
                scores = uniform_scores(costs, _uniform_units(self.recipe, self.targets), own)
            if processes().is_main_process:
                scores.save(path)
        processes().wait_for_everyone()
        scores = ImportanceScores.load(path)
        if difference := first_difference(dict(scores.unit_costs), costs):
            raise OutputError(f"{path} is for another model or other targets: {difference}; remove it to score again")
        return scores

    def plan(self, method: str, folder: Path, scores: ImportanceScores) -> RankPlan:
        path = folder / "plan.json"
        if not path.exists():
            plan = _allocate(method, self.recipe, scores)
            if processes().is_main_process:
                plan.save(path)
        processes().wait_for_everyone()
        plan = RankPlan.load(path)
        if plan.provenance.get("scores") != scores.fingerprint:
            raise OutputError(f"{path} was made from other scores than those in {folder}; remove it to allocate again")
        return plan

    def evaluation(self, method: str, folder: Path, plan: RankPlan) -> Evaluation:
        path = folder / "evaluation.json"
        if not path.exists():
            if not (folder / "adapter").exists():
                train_plan(self.recipe, self.data, plan, self.tokenizer, folder, self.console, f"stage 2, {method}")
            self.console.print(f"evaluating {method} on {len(self.data.test):,} test examples", highlight=False)
            stage = "stage2" if self.retrains(method) else "stage1"
            evaluation = evaluate_adapter(self.recipe, self.data, plan, self.tokenizer, folder, stage)
            if processes().is_main_process:
                write_json(path, asdict(evaluation))
        processes().wait_for_everyone()
        try:
            return Evaluation(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path}: damaged ({error}); remove it to evaluate again") from None
