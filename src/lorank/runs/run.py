"""A whole run: search or calibration, cut, train, evaluate, save; or the training of a plan made before.

Each part leaves an artefact, and a part that has left it is not done again: the same call continues where a killed one
stopped.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.allocation.cut_history import CUTS, CutHistory
from lorank.allocation.top_b import EQUAL
from lorank.artefact import read_json, write_json
from lorank.budget import budget_text
from lorank.errors import OutputError, RecipeError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.methods.registry import FULL, PROBE, unknown_method
from lorank.models.adapted_model import saved_modules
from lorank.models.loading import config_of, task_type_of, without_weights
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import loading_options
from lorank.page.page import REPORT, write_page
from lorank.page.run_folder import read_run
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.report.cut_map import draw_cuts
from lorank.report.markdown import code, inline
from lorank.report.model_card import write_model_card
from lorank.report.picture import drawing
from lorank.report.rank_map import draw_rank_map
from lorank.runs.full_run import full_result
from lorank.runs.method_run import MethodRun, as_result, start_of
from lorank.runs.output import as_begun, locked_directory
from lorank.runs.prepare import prepare
from lorank.runs.recipe_values import pretrained_of
from lorank.scores import ImportanceScores
from lorank.tasks.data import TaskData
from lorank.tasks.section import DataSection


@dataclass(frozen=True)
class RunResult:
    """Where a finished run's files are, and what it measured.

    Attributes:
        directory: output directory.
        plan: of the recipe's method.
        results: method name -> metrics, adapter parameters (of full fine-tuning: trained parameters), steps and seconds; as in
            metrics.json.

    """

    directory: Path
    plan: RankPlan
    results: Mapping[str, Mapping[str, Any]]


def run(recipe: Recipe, directory: str | Path, console: Console | None = None) -> RunResult:
    """Carry out a recipe in `directory`, or continue it.

    Writes `recipe.yaml`, `scores.safetensors`, `plan.json`, `adapter/`, `metrics.json` and `ranks.png`; of a method that
    cuts also `cuts.jsonl` and `cuts.png`; a page about all of it, `report.html`; baselines go under `baselines/`.

    Raises:
        LorankError: bad input, found before anything expensive, several findings as one; or training that cannot go on, after
            which the last checkpoint stays.

    """
    _check_recipe(recipe)
    directory, console, results = Path(directory), _console(console), {}
    begun = as_begun(recipe, directory, partial(_note, console))
    recipe, prepared = prepare(begun, (recipe.method, *recipe.baselines), console)
    main_run = MethodRun(recipe, prepared, recipe.method, directory, console)
    with locked_directory(directory, recipe, prepared.data, prepared.provenance):
        if _is_finished(directory, (recipe.method, *recipe.baselines)):
            _note(console, f"{directory} holds this run, finished: it is shown again, and nothing is trained")
        results[recipe.method] = main_run.result()
        plan = RankPlan.load(directory / "plan.json")
        results |= _baseline_results(main_run, plan)
        _write_results(main_run, recipe.preset, plan, results)
    return RunResult(directory, plan, results)


def run_plan(recipe: Recipe, plan: RankPlan, directory: str | Path, console: Console | None = None) -> RunResult:
    """Train, evaluate and save the adapter of a plan that was made before, or continue; baselines get the plan's budget.

    The recipe says on what and how (`train`); its method and budget are the plan's. Writes what `run` writes, but no scores.

    Raises:
        PlanError: a plan for another model, naming the first module that differs.
        LorankError: as `run`.

    """
    _check_recipe(recipe)
    directory, console, results = Path(directory), _console(console), {}
    name = str(plan.provenance.get("method", "plan"))
    if name in recipe.baselines:
        name = f"{name} (plan)"
    asked = _budget_of(plan) if recipe.baselines else str(plan.budget_parameters)
    recipe = recipe.model_copy(update={"budget": asked})
    path = directory / "plan.json"
    if path.is_file() and RankPlan.load(path) != plan:
        raise OutputError(f"{directory} belongs to another plan ({path}); give another --output, or remove it")
    findings, prepared = Findings(), None
    with findings.check():
        check_plan(pretrained_of(recipe), plan, writes=recipe.data.writes)
    with findings.check():
        begun = as_begun(recipe, directory, partial(_note, console))
        recipe, prepared = prepare(begun, tuple(recipe.baselines), console)
    findings.raise_all()
    assert prepared is not None
    main_run = MethodRun(recipe, prepared, name, directory, console)
    with locked_directory(directory, recipe, prepared.data, prepared.provenance):
        if processes().is_main_process:
            plan.save(path)
        processes().wait_for_everyone()
        # A shuffled plan starts as the plan that was shuffled.
        method = str(plan.provenance.get("shuffled") or plan.provenance.get("method"))
        if method not in (*METHODS, PROBE) and plan.provenance.get("method"):
            console.print(f"note: the adapter starts as PEFT starts: {unknown_method(method)}", highlight=False)
        start = start_of(recipe.of(method), prepared, plan) if method in METHODS else None
        results[name] = as_result(main_run.evaluation(plan, start=start))
        results |= _baseline_results(main_run, plan)
        _write_results(main_run, plan.provenance.get("preset"), plan, results)
    return RunResult(directory, plan, results)


def _is_finished(directory: Path, methods: tuple[str, ...]) -> bool:
    """Whether a run has written the results of all these."""
    try:
        return set(methods) <= set(read_json(directory / "metrics.json")["results"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe is {type(recipe).__name__}; give lorank.load_recipe(path), or a lorank.Recipe")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":  # set by accelerate launch --use_deepspeed
        raise RecipeError(
            "a recipe does not train under DeepSpeed: transformers cannot evaluate with ZeRO-2, and with ZeRO-3 a run would read "
            "its adapter from shards; start with torchrun (DDP), or make a plan by `lorank score` and `lorank allocate` and "
            "train it as examples/train_a_plan_deepspeed.py does (docs/several-devices.md)"
        )


def check_plan(base: Pretrained, plan: RankPlan, *, writes: bool) -> None:
    """Refuse a plan for another model, from the model's config alone.

    Raises:
        PlanError: names the first module that differs.

    """
    task_type = task_type_of(base, writes=writes)
    plan.check_model(without_weights(base, task_type))


def _note(console: Console, line: str) -> None:
    console.print(f"note: {line}", highlight=False, soft_wrap=True)


def _console(console: Console | None) -> Console:
    """The first of several processes alone says what it does."""
    return (console or Console(stderr=True)) if processes().is_main_process else Console(quiet=True)


def _baseline_results(main_run: MethodRun, plan: RankPlan) -> dict[str, dict[str, Any]]:
    """Of each baseline, at the parameters of the plan, unless the recipe gives it a budget of its own."""
    folder, recipe, results = main_run.folder / "baselines", main_run.recipe, {}
    for name, own in recipe.baselines.items():
        of = recipe.of(name)
        if "budget" not in own:
            of = of.model_copy(update={"budget": _budget_of(plan)})
        part = replace(main_run, recipe=of, method=name, folder=folder / name)
        results[name] = as_result(full_result(part)) if name == FULL else part.result()
        if "budget" in own:
            results[name]["budget"] = budget_text(of.read_budgets)
    return results


def _budget_of(plan: RankPlan) -> str | dict[str, str]:
    """The parameters that a plan's budget means, as a recipe has them; of groups of modules those of each."""
    found = plan.budgets
    return {group: str(one) for group, one in found.items()} if isinstance(found, dict) else str(found)


def _write_results(main_run: MethodRun, preset: Any, plan: RankPlan, results: Mapping[str, Any]) -> None:
    if not processes().is_main_process:
        return
    prepared, picture = main_run.prepared, main_run.folder / "ranks.png"
    content = {"budget": plan.budget_record, "method": main_run.method, "preset": preset, "results": results}
    content["examples"] = {name: len(rows) for name, rows in prepared.data.parts.items()}  # not those of a stream
    content["processes"] = processes().num_processes
    if prepared.data.more:
        content["test_parts"] = prepared.section.test_parts  # the first is the one of `metrics`
    if (sample := prepared.section.sample) is not None:
        rows = {part: {"rows": len(drawn.rows), "of": drawn.of} for part, drawn in prepared.data.drawn.items()}
        content["sample"] = {"seed": sample.seed, **rows}
    write_json(main_run.folder / "metrics.json", content)
    _draw(main_run.folder, plan, _rank_map_title(prepared.base, prepared.section, plan, main_run.method, preset))
    write_model_card(
        main_run.folder / "adapter",
        plan,
        title=main_run.folder.resolve().name,
        base_model=prepared.base.name,
        method=main_run.method,
        preset=preset,
        data=_data_described(prepared.section, prepared.data, chosen=main_run.recipe.train.patience is not None),
        hub_data=prepared.section.name,
        results=results,
        task_type=prepared.task_type,
        num_labels=len(prepared.data.label_names) or 1,
        seed=prepared.settings.seed,
        base_options=loading_options(prepared.base, config_of(prepared.base)),
        resized=bool(prepared.base.new_tokens),
        whole=saved_modules(main_run.folder / "adapter"),
        picture=picture if picture.is_file() else None,
    )
    with drawing(main_run.folder / REPORT):
        write_page([read_run(main_run.folder)], main_run.folder / REPORT, figures=False)


def _draw(folder: Path, plan: RankPlan, title: str) -> None:
    """Ranks beside the importance that they were assigned by, where there is one; and before and after cuts."""
    path, scores = folder / "scores.safetensors", None
    if path.is_file() and not (found := ImportanceScores.load(path)).provenance.get(EQUAL):
        scores = found
    draw_rank_map(plan, folder / "ranks.png", title, scores)
    if (folder / CUTS).is_file():
        draw_cuts(CutHistory.load(folder / CUTS), folder / "cuts.png", title)


def _data_described(section: DataSection, data: TaskData, *, chosen: bool) -> str:
    """What the adapter was trained and tested on, in Markdown; and whether it was `chosen` by its loss on `data.eval`."""
    parts = section.test_parts
    if section.name is not None:
        named = " ".join(filter(None, [section.name, section.config]))
        train, *tests = (f"{code(named)} ({inline(str(split))})" for split in (section.train_split, *parts.values()))
    else:
        train, *tests = (code(Path(str(path)).name) for path in (section.train, *parts.values()))
    labels = f", {len(data.label_names)} labels" if data.label_names else f", {section.task}"
    sums = {name: sum_ for name, sum_ in data.hashes.items() if name == "test" or name in data.more}
    use = "never used for scoring or stopping"
    if data.hashes.get("train") in sums.values():
        use = (
            "of which one is what it was trained on"
            if data.more
            else "which are the same: it was tested on what it was trained on"
        )
    names = [f"{inline(name)}: " for name in parts] if data.more else [""] * len(tests)
    tested = "; ".join(
        f"{called}{len(data.parts[name]):,} of {test}, SHA-256 {sum_[:12]}…"
        for called, (name, sum_), test in zip(names, sums.items(), tests, strict=True)
    )
    drawn = ""
    if data.drawn and section.sample is not None:
        shares = ", ".join(
            f"{len(part.rows):,} of the {part.of:,} of {inline(name)}" for name, part in data.drawn.items()
        )
        drawn = f" These are random examples (`data.sample`, seed {section.sample.seed}): {shares}."
    said = f"tested on {tested}, {use}" if tests else "not tested"
    if data.eval is not None:
        best = ", and the adapter with the lowest one is kept" if chosen else ""
        drawn = (
            f" The loss was measured on {len(data.eval):,} other examples while training (`data.eval`){best}.{drawn}"
        )
    of = f"{train}{labels}"
    if data.streams:
        return f"Trained on a stream of {of}; {said}.{drawn}"
    return f"Trained on {len(data.train):,} examples of {of}, SHA-256 {data.hashes['train'][:12]}…; {said}.{drawn}"


def _rank_map_title(base: Pretrained, section: DataSection, plan: RankPlan, method: str, preset: Any) -> str:
    """Method, model, data and budget, in two lines. A file is named by its name, one that is called `train` by its folder."""
    file = Path(str(section.train))
    data = section.name or (file.resolve().parent.name if file.stem == "train" else file.name)
    where = " · ".join([Path(base.name).name, " ".join(filter(None, [data, section.config]))])
    named = f"{method} ({preset})" if preset else method
    return f"{named} · {where}\nbudget {plan.budget}: {plan.spending}, total rank {plan.total_rank}"
