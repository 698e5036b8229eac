"""`lorank prune`: an adapter's folder in, a smaller adapter's folder out, with what that cost."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console

from lorank.artefact import check_new_folder, new_folder, write_json
from lorank.budget import Budget
from lorank.errors import AdapterError, one_line
from lorank.links import check_links
from lorank.models.adapted_model import load_adapted
from lorank.models.adapter_checks import check_adapter_labels, check_adapter_task
from lorank.models.label_names import label_names_of, read_label_names, write_label_names
from lorank.models.loading import NOT_LOADABLE
from lorank.module_names import is_adapter_tensor
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.pruning.prune import choose_score, prune
from lorank.recipe.recipe import Recipe
from lorank.report.rank_map import draw_rank_map
from lorank.runs.calibration_set import calibration_batches, calibration_rows, calibration_set_of
from lorank.runs.prepare import prepare
from lorank.runs.recipe_values import pretrained_of
from lorank.scoring.batches import Batch, on_device_of
from lorank.tasks.loss_file import LOSSES
from lorank.training.plan_stage import evaluate_saved
from lorank.training.prepared import Prepared


def prune_adapter(
    adapter: Path,
    budget: str,
    output: Path,
    recipe: Recipe | None,
    *,
    by: str | None = None,
    before: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **limits: Any,
) -> tuple[RankPlan, dict[str, Any]]:
    """`lorank prune`: load an adapter, prune it, save it with its plan, and measure what that cost.

    With a recipe, triplets are scored on its calibration set (training examples), and both adapters are evaluated on its test
    part through plain PEFT. Without one the adapter's own base model is loaded and pruning is by `"svd"`.

    Args:
        adapter: folder of a PEFT adapter.
        budget: as in `lorank.allocate`.
        output: a new folder.
        recipe: what it was trained by; None: nothing is scored on examples or evaluated.
        by: score of the triplets.
        before: `metrics` and `loss` of the adapter on the test part, where they are known; None measures them.
        console: for lines of progress.
        **limits: as in `lorank.allocate`.

    Returns:
        The plan, and JSON values: `before` and `after`, each with adapter parameters, metrics and loss on the test part, and
        the mean loss on the calibration set, as far as they are known. Also in `output/pruned.json`.

    Raises:
        OutputError: `output` is not empty.
        LorankError: as `prune`, an adapter that PEFT cannot load, or one for another task or number of labels than the recipe's.

    """
    choose_score(by, data=recipe is not None)
    Budget.parse(budget)
    check_new_folder(output)
    if not (adapter / "adapter_config.json").is_file():
        raise AdapterError(f"{adapter} has no adapter_config.json; give the folder of a PEFT adapter")
    check_links(adapter)
    console = console or Console(quiet=True)
    batches: Sequence[Batch] | None = None
    prepared: Prepared | None = None
    if recipe is None:
        model = load_adapted(adapter)
    else:
        check_adapter_task(adapter, pretrained_of(recipe), recipe.data.task, writes=recipe.data.writes)
        recipe, prepared = prepare(recipe, (), console)
        if not recipe.data.writes:
            check_adapter_labels(adapter, prepared.base, prepared.data.label_names)
        model = _on(prepared.load_model().model, adapter)
        rows = calibration_rows(prepared.data.train, calibration_set_of(recipe).examples, recipe.seed)
        padded = calibration_batches(prepared, rows, calibration_set_of(recipe).batch_size)
        model.to(processes().device)
        batches = [on_device_of(model, batch) for batch in padded]
    held = sum(p.numel() for n, p in model.named_parameters() if is_adapter_tensor(n))
    console.print(f"scoring the triplets of {held:,} adapter parameters", highlight=False)
    pruned = prune(model, budget, batches, by=by, **limits)
    by_what = str(pruned.plan.provenance["method"])
    with new_folder(output) as partial:
        model.save_pretrained(str(partial / "adapter"))
        write_label_names(partial / "adapter", read_label_names(adapter) or label_names_of(model))
        pruned.plan.save(partial / "plan.json")
        pruned.scores.save(partial / "scores.safetensors")
        measured: dict[str, dict[str, Any]] = {
            "before": {"adapter_parameters": held, "calibration_loss": pruned.loss_before},
            "after": {"adapter_parameters": pruned.plan.spent, "calibration_loss": pruned.loss_after},
        }
        if prepared is not None:
            measured["before"] |= before or {}
            for when, folder in (("before", adapter), ("after", partial / "adapter")):
                if "metrics" in measured[when]:
                    continue
                console.print(
                    f"evaluating {when} pruning on {len(prepared.data.test):,} test examples", highlight=False
                )
                metrics, loss, more = evaluate_saved(prepared, folder, partial / "work")
                measured[when] |= {"metrics": metrics, "loss": loss, **({"more": more} if more else {})}
            if (losses := partial / "work" / LOSSES).is_file():
                losses.replace(partial / LOSSES)
            shutil.rmtree(partial / "work", ignore_errors=True)
        spent = f"{held:,} parameters, now {pruned.plan.spending}"
        draw_rank_map(pruned.plan, partial / "ranks.png", f"{adapter.name}: {by_what}\n{spent}", pruned.scores)
        write_json(partial / "pruned.json", measured)
    return pruned.plan, measured


def _on(base: Any, adapter: Path) -> PeftModel:
    try:
        return PeftModel.from_pretrained(base, str(adapter))
    except NOT_LOADABLE as error:
        reason = one_line(error)
        raise AdapterError(
            f"{adapter} cannot be loaded on the base model of the recipe: {reason}; give the recipe that trained it as --data"
        ) from None
