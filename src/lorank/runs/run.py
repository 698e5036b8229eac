"""A whole run: hold out, stage 1 or calibration, cut, stage 2, evaluate, save; or the training of a plan made before.

Each part leaves an artefact, and a part that has left it is not done again: the same call continues where a killed one
stopped.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.artefact import write_json
from lorank.errors import OutputError, RecipeError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.models.loading import load_without_weights, task_type_of
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import CalibrationSection
from lorank.report.model_card import write_model_card
from lorank.report.rank_map import draw_rank_map
from lorank.runs.output import claimed
from lorank.runs.prepare import prepare
from lorank.runs.work import Work
from lorank.tasks.data import TaskData


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
        LorankError: bad input, found before anything expensive, several findings as one; or training that cannot go on, after
            which the last checkpoint stays.

    """
    if (
        not any(METHODS[m].scorer for m in (recipe.method, *recipe.baselines))
        and recipe.calibration != CalibrationSection()
    ):
        known = ", ".join(name for name, method in METHODS.items() if method.scorer)
        raise RecipeError(f"calibration: for methods that score before training ({known}); leave it out")
    work = _prepared(recipe, (recipe.method, *recipe.baselines), console)
    directory, results = Path(directory), {}
    with claimed(directory, work.recipe, work.data, work.provenance):
        results[recipe.method] = _method_result(work, recipe.method, directory)
        results |= _baseline_results(work, directory)
        plan = RankPlan.load(directory / "plan.json")
        _write_results(work, recipe.method, recipe.preset, plan, results, directory)
    return RunResult(directory, plan, results)


def run_plan(recipe: Recipe, plan: RankPlan, directory: str | Path, console: Console | None = None) -> RunResult:
    """Train, evaluate and save the adapter of a plan that was made before, or continue; baselines get the plan's budget.

    The recipe says on what and how (`stage2`); its method and budget are the plan's. Writes what `run` writes, but no scores.

    Raises:
        PlanError: a plan for another model, naming the first module that differs.
        LorankError: as `run`.

    """
    if recipe.stage2.skip:
        raise RecipeError("stage2.skip leaves nothing to train the plan by; leave it out")
    directory, results = Path(directory), {}
    name = str(plan.provenance.get("method", "plan"))
    if name in recipe.baselines:
        name = f"{name} (plan)"
    recipe = recipe.model_copy(update={"budget": str(plan.budget_parameters)})
    path = directory / "plan.json"
    if path.is_file() and RankPlan.load(path) != plan:
        raise OutputError(f"{directory} belongs to another plan ({path}); give another --output-dir, or remove it")
    findings, prepared = Findings(), None
    with findings.check():
        check_plan(recipe, plan)
    with findings.check():
        prepared = _prepared(recipe, recipe.baselines, console)
    findings.raise_all()
    assert prepared is not None
    work = prepared
    with claimed(directory, work.recipe, work.data, work.provenance):
        if processes().is_main_process:
            plan.save(path)
        processes().wait_for_everyone()
        # A shuffled plan starts as the plan that was shuffled.
        start = work.start_of(str(plan.provenance.get("shuffled") or plan.provenance.get("method")), plan)
        results[name] = asdict(work.evaluation(name, directory, plan, start=start))
        results |= _baseline_results(work, directory)
        _write_results(work, name, plan.provenance.get("preset"), plan, results, directory)
    return RunResult(directory, plan, results)


def check_plan(recipe: Recipe, plan: RankPlan) -> None:
    """Refuse a plan for another model, from the model's config alone.

    Raises:
        PlanError: names the first module that differs.

    """
    model = load_without_weights(
        recipe.model, trust_remote_code=recipe.trust_remote_code, task_type=task_type_of(recipe)
    )
    plan.check_model(model)


def _prepared(recipe: Recipe, methods: tuple[str, ...], console: Console | None) -> Work:
    """Everything checked that can be, before anything is trained or written."""
    console = (console or Console(stderr=True)) if processes().is_main_process else Console(quiet=True)
    found = prepare(recipe, methods, console)
    return Work(found.recipe, found.data, found.targets, found.tokenizer, console, found.provenance)


def _method_result(work: Work, method: str, folder: Path) -> dict[str, Any]:
    """Score, allocate, train and evaluate one method, or read back what of it is there."""
    work.allocate_in_training(method, folder)
    scores = work.scores(method, folder)
    plan = work.plan(method, folder, scores)
    work.keep_stage1(method, folder, plan, scores)
    stage = "stage2" if work.retrains(method) else "stage1"
    evaluation = work.evaluation(method, folder, plan, stage=stage, start=work.start_of(method, plan))
    return {**asdict(evaluation), **work.cost_of_scores(method, folder, scores)}


def _baseline_results(work: Work, directory: Path) -> dict[str, dict[str, Any]]:
    return {method: _method_result(work, method, directory / "baselines" / method) for method in work.recipe.baselines}


def _write_results(
    work: Work, method: str, preset: Any, plan: RankPlan, results: Mapping[str, Any], directory: Path
) -> None:
    if not processes().is_main_process:
        return
    recipe, data, picture = work.recipe, work.data, directory / "ranks.png"
    budget = {"asked": plan.budget, "parameters": plan.budget_parameters, "spent": plan.spent}
    budget |= {} if plan.budget_units is None else {"units": plan.budget_units}
    found = {"budget": budget, "method": method, "preset": preset, "results": results}
    write_json(directory / "metrics.json", found)
    draw_rank_map(plan, picture, rank_map_title(recipe, plan, method, preset))
    write_model_card(
        directory / "adapter",
        plan,
        title=directory.resolve().name,
        base_model=recipe.model,
        method=method,
        preset=preset,
        data=_data_described(recipe, data),
        hub_data=recipe.data.name,
        results=results,
        task_type=task_type_of(recipe),
        num_labels=len(data.label_names) or 1,
        seed=recipe.seed,
        picture=picture if picture.is_file() else None,
    )


def _data_described(recipe: Recipe, data: TaskData) -> str:
    """What the adapter was trained and tested on, in Markdown."""
    if recipe.data.name is not None:
        named = " ".join(filter(None, [recipe.data.name, recipe.data.config]))
        train, test = f"`{named}` ({recipe.data.train_split})", f"`{named}` ({recipe.data.test_split})"
    else:
        train, test = (f"`{Path(str(path)).name}`" for path in (recipe.data.train, recipe.data.test))
    labels = f", {len(data.label_names)} labels" if data.label_names else f", {recipe.data.task}"
    same = data.hashes["train"] == data.hashes["test"]
    use = (
        "which are the same: it was tested on what it was trained on" if same else "never used for scoring or stopping"
    )
    return (
        f"Trained on {len(data.train):,} examples of {train}{labels}, SHA-256 {data.hashes['train'][:12]}…; tested on "
        f"{len(data.test):,} of {test}, SHA-256 {data.hashes['test'][:12]}…, {use}."
    )


def rank_map_title(recipe: Recipe, plan: RankPlan, method: str, preset: Any) -> str:
    """Method, model, data and budget, in two lines."""
    data = recipe.data.name or Path(str(recipe.data.train)).resolve().parent.name
    where = " · ".join([Path(recipe.model).name, " ".join(filter(None, [data, recipe.data.config]))])
    named = f"{method} ({preset})" if preset else method
    return f"{named} · {where}\nbudget {plan.budget}: {plan.spending}, total rank {plan.total_rank}"
