"""A whole run: hold out, stage 1, cut, stage 2, evaluate, save.

Each part leaves an artefact, and a part that has left it is not done again: the same call continues where a killed one
stopped.
"""

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lorank.allocation.top_b import allocate, uniform_scores
from lorank.artefact import write_atomically, write_json
from lorank.errors import BudgetError, LorankWarning, OutputError
from lorank.methods import METHODS
from lorank.plan import RankPlan
from lorank.report.rank_map import draw_rank_map
from lorank.scores import ImportanceScores
from lorank.targets import Target, find_targets, unit_costs
from lorank.training.data import TaskData, load_task_data
from lorank.training.metrics import choose_metrics
from lorank.training.model import base_parameters, load_tokenizer, load_without_weights
from lorank.training.processes import processes
from lorank.training.recipe import Recipe
from lorank.training.stage1 import score_units, split_for_scoring
from lorank.training.stage2 import Evaluation, evaluate_adapter, train_plan

VERSIONS = ("lorank", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


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
    tokenizer = load_tokenizer(recipe)
    with processes().main_process_first():
        _claim(directory, recipe, data, provenance)

    results: dict[str, dict[str, Any]] = {}
    plan: RankPlan | None = None
    for method in (recipe.method, *recipe.baselines):
        folder = directory if plan is None else directory / "baselines" / method
        own_plan, evaluation, scores = _carry_out(method, recipe, data, targets, tokenizer, folder, console, provenance)
        results[method] = asdict(evaluation)
        if "stage1" in scores.provenance:
            results[method]["stage1"] = {**scores.provenance["stage1"], "passes": scores.provenance["scoring_passes"]}
        plan = plan or own_plan
    assert plan is not None

    write_json(
        directory / "metrics.json",
        {
            "budget": {"asked": plan.budget, "parameters": plan.budget_parameters, "spent": plan.spent},
            "method": recipe.method,
            "preset": recipe.preset,
            "results": results,
        },
    )
    draw_rank_map(plan, directory / "ranks.png", rank_map_title(recipe, plan))
    return RunResult(directory, plan, results)


def rank_map_title(recipe: Recipe, plan: RankPlan) -> str:
    """Method, model, data and budget, in two lines."""
    data = recipe.data.name or Path(str(recipe.data.train)).resolve().parent.name
    where = " · ".join([Path(recipe.model).name, " ".join(filter(None, [data, recipe.data.config]))])
    spent = f"{plan.spent:,} of {plan.budget_parameters:,} parameters"
    return f"{recipe.method} ({recipe.preset}) · {where}\nbudget {plan.budget}: {spent}, total rank {plan.total_rank}"


def check_model(recipe: Recipe) -> tuple[tuple[Target, ...], dict[str, Any]]:
    """Check targets, budget, limits and metrics on the model's config alone; no weights are loaded.

    Returns:
        The targets, and the provenance that scores and plan carry.

    Raises:
        LorankError: any of them does not fit.

    """
    choose_metrics(recipe.data.task, recipe.metrics)
    model = load_without_weights(recipe.model, trust_remote_code=recipe.trust_remote_code)
    targets = find_targets(model, recipe.targets)
    costs, size = unit_costs(targets), base_parameters(model)
    initial = recipe.stage1.initial_rank
    parameters = recipe.text_budget.parameters(costs, base_parameters=size, initial_rank=initial)
    limits = recipe.allocation
    most = min(initial, limits.max_rank or initial) // limits.multiple_of * limits.multiple_of
    if METHODS[recipe.method].trained == "triplets" and parameters > most * sum(costs.values()):
        raise BudgetError(
            f"budget {recipe.budget} is {parameters:,} parameters, but at most rank {most} in every module is on offer "
            f"({most * sum(costs.values()):,}); raise stage1.initial_rank (now {initial}) or allocation.max_rank, or ask for less"
        )
    provenance = {
        "model": recipe.model,
        "base_parameters": size,
        "method": recipe.method,
        "preset": recipe.preset,
        "seed": recipe.seed,
        "scoring": recipe.scoring.model_dump(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    # The limits are tried on equal scores now, not after an hour of stage 1.
    allocate(uniform_scores(costs, initial, provenance), recipe.budget, **limits.model_dump())
    return targets, provenance


def _carry_out(
    method: str,
    recipe: Recipe,
    data: TaskData,
    targets: tuple[Target, ...],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    console: Console,
    provenance: Mapping[str, Any],
) -> tuple[RankPlan, Evaluation, ImportanceScores]:
    """Scores, plan, adapter and evaluation of one method, each read back if it is there already."""
    costs = unit_costs(targets)
    scores_file, plan_file, evaluation_file = (
        folder / "scores.safetensors",
        folder / "plan.json",
        folder / "evaluation.json",
    )
    if scores_file.exists():
        scores = ImportanceScores.load(scores_file)
    else:
        if METHODS[method].trained == "triplets":
            own = {**provenance, "method": method}
            scores = score_units(recipe, data, targets, tokenizer, folder / "stage1", console, own)
        else:
            units = max(recipe.stage1.initial_rank, min(min(t.d_in, t.d_out) for t in targets))
            scores = uniform_scores(costs, units, {**provenance, "method": method, "preset": None, "scoring": None})
        scores.save(scores_file)
    if plan_file.exists():
        plan = RankPlan.load(plan_file)
    else:
        budget: str | int = recipe.budget
        limits = recipe.allocation.model_dump()
        if METHODS[method].trained == "nothing":
            # β is a share of what stage 1 starts with, which a method without a stage 1 knows only from the recipe.
            initial = recipe.stage1.initial_rank
            budget = recipe.text_budget.parameters(
                costs, base_parameters=provenance["base_parameters"], initial_rank=initial
            )
            limits |= {"rank_by": "score"}
        plan = allocate(scores, budget, scale=recipe.scale, **limits)
        plan.save(plan_file)
    for path, named in ((scores_file, scores.unit_costs), (plan_file, plan.unit_costs)):
        if difference := _first_difference(dict(named), costs):
            raise OutputError(f"{path} is for another model or other targets: {difference}; remove it to make it again")
    if not evaluation_file.exists():
        if not (folder / "adapter").exists():
            train_plan(recipe, data, plan, tokenizer, folder, console, f"stage 2, {method}")
        console.print(f"evaluating {method} on {len(data.test):,} test examples", highlight=False)
        evaluation = evaluate_adapter(recipe, data, plan, tokenizer, folder)
        write_json(evaluation_file, asdict(evaluation))
    evaluation = Evaluation(**json.loads(evaluation_file.read_text(encoding="utf-8")))
    return plan, evaluation, scores


def _claim(directory: Path, recipe: Recipe, data: TaskData, provenance: Mapping[str, Any]) -> None:
    """Write the resolved recipe, or make sure that the one that stands there is this one.

    Raises:
        OutputError: the directory holds something else.

    """
    path = directory / "recipe.yaml"
    content = recipe.model_dump(mode="json", exclude={"resolved"})
    resolved = {
        "data": dict(data.hashes),
        "labels": list(data.label_names),
        "base_parameters": provenance["base_parameters"],
        "versions": provenance["versions"],
        "python": platform.python_version(),
    }
    if not path.exists():
        if directory.exists() and any(not entry.name.startswith(".") for entry in directory.iterdir()):
            raise OutputError(f"{directory} is not empty and holds no recipe.yaml; give another --output-dir")
        text = yaml.safe_dump({**content, "resolved": resolved}, sort_keys=False, allow_unicode=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    try:
        stands = yaml.safe_load(path.read_text(encoding="utf-8"))
        before = stands.pop("resolved")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise OutputError(f"{path} was not written by lorank or was damaged; give another --output-dir") from None
    if difference := _first_difference(stands, content):
        raise OutputError(
            f"{directory} belongs to another recipe: {difference}; give another --output-dir, or remove it"
        )
    if difference := _first_difference(before["data"], resolved["data"]):
        raise OutputError(
            f"{directory}: the data changed since this run began: {difference}; give another --output-dir"
        )
    if difference := _first_difference(before["versions"], resolved["versions"]):
        warnings.warn(f"{directory}: versions changed since this run began: {difference}", LorankWarning, stacklevel=3)


def _first_difference(before: Any, now: Any, key: str = "") -> str | None:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in (*now, *(set(before) - set(now))):
            if found := _first_difference(before.get(name), now.get(name), f"{key}.{name}".strip(".")):
                return found
        return None
    return None if before == now else f"{key} was {before!r}, now {now!r}"
