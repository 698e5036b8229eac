"""Run one cell of a comparison in its own folder: `python -m lorank.compare.run_cell FOLDER`.

A cell runs in a process of its own: its memory is its own, and one that is killed takes no other with it. What it has done
is in its folder, so the next try continues it.
"""

import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import set_seed

from lorank.artefact import copy_file, file_checksum, read_json
from lorank.compare.cells import (
    ERROR,
    FROM_PLAN,
    ORDER,
    RESULT,
    Cell,
    Measured,
    fingerprint_of,
    recipe_of,
    write_measured,
)
from lorank.compare.controls import shortened, shuffled, steps_before
from lorank.errors import ComparisonError, LorankError, one_line
from lorank.methods.plugins import load_plugin, loaded_plugins, plugin_of
from lorank.methods.registry import FULL
from lorank.models.base_fingerprint import base_sum
from lorank.models.loading import load_tokenizer, task_type_of
from lorank.plan import RankPlan
from lorank.recipe.recipe import Recipe
from lorank.runs.defaults import fitted
from lorank.runs.full_run import full_result
from lorank.runs.method_run import MethodRun
from lorank.runs.output import locked_directory
from lorank.runs.prepare import prepare
from lorank.runs.prune_adapter import prune_adapter
from lorank.runs.recipe_values import pretrained_of
from lorank.runs.run import run, run_plan
from lorank.tasks.data import TaskData, load_task_data
from lorank.tasks.encoding import tokenize
from lorank.tasks.loss_file import LOSSES
from lorank.tasks.section import GENERAL_TEXT
from lorank.training.trainer import SeededOrder


def run_cell(recipe: Recipe, cell: Cell, folder: Path, plan_of: Path | None, console: Console) -> Measured:
    """Train and evaluate one cell, or continue it.

    Args:
        recipe: of the cell (`recipe_of`).
        cell: which one.
        folder: where it works.
        plan_of: for controls that train a plan: the folder of the cell that made it.
        console: for lines of progress.

    Raises:
        ComparisonError: the adapter does not have the budget's parameters, or the plan to train is not there.
        LorankError: as `lorank.runs.run.run`.

    """
    data = load_task_data(recipe.data)
    recipe = fitted(recipe, data, (recipe.method,), console.print)
    measured, plugin = _measured(recipe, cell, folder, plan_of, data, console), plugin_of(recipe.method)
    _keep_losses(folder)
    return replace(measured, base=base_sum(pretrained_of(recipe)), plugin=plugin.sha if plugin else None)


def _keep_losses(folder: Path) -> None:
    """Leave the test losses of the examples beside the result; an evaluation by an earlier version has left none."""
    for place in (
        "pruned",
        "run/train",
        "run/stage2",
        "run/stage1",
    ):  # the last two in folders that an earlier version began
        if (losses := folder / place / LOSSES).is_file():
            copy_file(losses, folder / LOSSES)
            return


def _measured(
    recipe: Recipe, cell: Cell, folder: Path, plan_of: Path | None, data: TaskData, console: Console
) -> Measured:
    if cell.method == FULL:
        return _full(recipe, data, folder, console)
    if cell.method == "svd-truncate":
        return _truncated(recipe, data, folder, console)
    spent, trained_plan = 0, None
    if cell.method in FROM_PLAN:
        path = (plan_of or folder) / "run" / "plan.json"
        if not path.is_file():
            raise ComparisonError(f"{path} is not there: the plan has to be made first; run the grid again")
        plan, trained_plan = RankPlan.load(path), file_checksum(path)
        if cell.method == "shuffled":
            plan = shuffled(plan, cell.seed)
        else:
            recipe, spent = shortened(recipe, len(data.train), path.parent)
        result = run_plan(recipe, plan, folder / "run", console)
    else:
        result = run(recipe, folder / "run", console)
    trained = next(iter(result.results.values()))
    _check_parameters(trained["adapter_parameters"], result.plan)
    before = trained.get("search") or trained.get("calibration") or {}
    return Measured(
        metrics=trained["metrics"],
        loss=trained["loss"],
        parameters=trained["adapter_parameters"],
        scale=result.plan.scale,
        steps=trained["steps"],
        tokens=tokens_trained(recipe, data, trained["steps"]),
        seconds=trained["seconds"],
        before=before.get("seconds", 0.0),
        steps_before=spent or steps_before(recipe, trained),
        peak_bytes=peak_bytes(),
        data=data.hashes,
        plan=trained_plan,
        general_text=general_text(trained),
        skipped=_skipped(trained, before),
    )


def _truncated(recipe: Recipe, data: TaskData, folder: Path, console: Console) -> Measured:
    """Uniform LoRA at the initial rank, cut to the budget by singular values, without training on."""
    wide = recipe.model_copy(update={"budget": f"r={recipe.triplets.initial_rank}"})
    first = next(iter(run(wide, folder / "wide", console).results.values()))
    pruned = folder / "pruned"
    if not (pruned / "pruned.json").is_file():
        known = {key: first[key] for key in ("metrics", "loss")}
        prune_adapter(
            folder / "wide" / "adapter",
            str(recipe.read_budget),
            pruned,
            recipe,
            by="svd",
            before=known,
            console=console,
        )
    plan, after = RankPlan.load(pruned / "plan.json"), read_json(pruned / "pruned.json")["after"]
    _check_parameters(after["adapter_parameters"], plan)
    return Measured(
        metrics=after["metrics"],
        loss=after["loss"],
        parameters=after["adapter_parameters"],
        scale=plan.scale,
        steps=first["steps"],
        tokens=tokens_trained(recipe, data, first["steps"]),
        seconds=first["seconds"],
        peak_bytes=peak_bytes(),
        data=data.hashes,
        uncut=first["metrics"],
        general_text=general_text(after),
        skipped=_skipped(first),
    )


def _full(recipe: Recipe, data: TaskData, folder: Path, console: Console) -> Measured:
    recipe, prepared = prepare(recipe, (recipe.method,), console, data)
    with locked_directory(folder / "run", recipe, data, prepared.provenance):
        result = full_result(MethodRun(recipe, prepared, FULL, folder / "run", console))
    return Measured(
        metrics=result.metrics,
        loss=result.loss,
        parameters=result.trained_parameters,
        scale=None,
        steps=result.steps,
        tokens=tokens_trained(recipe, data, result.steps),
        seconds=result.seconds,
        peak_bytes=peak_bytes(),
        data=data.hashes,
        general_text=general_text({"more": result.more}),
        skipped=len(result.skipped_steps),
    )


def general_text(result: Mapping[str, Any]) -> dict[str, float] | None:
    """Losses on the general text, of a result as in metrics.json."""
    part = (result.get("more") or {}).get(GENERAL_TEXT)
    return None if part is None else part["metrics"]


def _skipped(*stages: Mapping[str, Any]) -> int:
    return sum(len(stage.get("skipped_steps", ())) for stage in stages)


def _check_parameters(parameters: int, plan: RankPlan) -> None:
    """A cell counts if it spends the budget to less than one unit of rank: more is not equal, and neither is less."""
    unit = max(plan.unit_costs.values())
    if not plan.budget_parameters - unit < parameters <= plan.budget_parameters:
        raise ComparisonError(
            f"the adapter has {parameters:,} parameters where the budget has {plan.budget_parameters:,} and a unit costs up to "
            f"{unit:,}: this cell would not be equal to the others; look at the limits in allocation"
        )


def tokens_trained(recipe: Recipe, data: TaskData, steps: int) -> int:
    """Tokens in the batches of so many optimizer steps, padding not counted."""
    base = pretrained_of(recipe)
    task_type = task_type_of(base, writes=recipe.data.writes)
    lengths = tokenize(data.train, load_tokenizer(base), recipe.data, task_type)["length"]
    batch = recipe.train.batch_size * recipe.train.gradient_accumulation
    order = SeededOrder(lengths, batch, recipe.seed, group_by_length=recipe.group_by_length)
    left, total = steps, 0
    while left > 0:
        order.epoch, indices = order.epoch, list(order)
        in_epoch = min(left, -(-len(indices) // batch))
        total += sum(lengths[k] for k in indices[: in_epoch * batch])
        left, order.epoch = left - in_epoch, order.epoch + 1
    return total


def peak_bytes() -> int:
    """Largest memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(folder: Path) -> int:
    """Read what the cell is from its folder, run it, and leave its result or the reason why there is none."""
    transformers.utils.logging.set_verbosity_error()
    order: Mapping[str, Any] = read_json(folder / ORDER)
    cell, began = Cell(**order["cell"]), time.time()
    try:
        _load_plugins(order.get("plugins", {}))
        recipe = recipe_of(order["content"], cell, order["own"], order["parameters"])
        set_seed(recipe.seed)
        plan_of = Path(order["plan_of"]) if order["plan_of"] else None
        measured = run_cell(recipe, cell, folder, plan_of, Console(width=160))
    except LorankError as error:
        (folder / ERROR).write_text(one_line(error, 2000), encoding="utf-8")
        return 1
    except Exception as error:  # whatever it is, the grid says it and goes on
        traceback.print_exc()
        (folder / ERROR).write_text(f"{type(error).__name__}: {one_line(error)}", encoding="utf-8")
        return 1
    # From when the grid started this process; imports are most of a small cell. Another machine's clock may be behind.
    wall = max(time.time() - order.get("began", began), time.time() - began)
    measured = replace(measured, wall=wall)
    write_measured(folder / RESULT, measured, fingerprint_of(recipe, cell))
    (folder / ERROR).unlink(missing_ok=True)
    return 0


def _load_plugins(plugins: Mapping[str, str]) -> None:
    """Load the files with methods that the grid has loaded: path -> SHA-256."""
    for path, sha in plugins.items():
        load_plugin(path)
        if loaded_plugins()[path] != sha:
            raise ComparisonError(f"plugin {path} changed since this comparison began; run it again")


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone: the next call of the grid starts the cell again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    raise SystemExit(main(Path(sys.argv[1])))
