"""`lorank prune`: an adapter's folder in, a smaller adapter's folder out for each budget, with what that cost."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console

from lorank.artefact import check_new_folder, new_folder, write_json
from lorank.errors import AdapterError
from lorank.models.adapted_model import load_adapted
from lorank.models.adapter_checks import check_adapter_labels, check_adapter_task
from lorank.models.label_names import label_names_of, read_label_names, write_label_names
from lorank.models.loading import on_own_device
from lorank.models.pretrained import loadable
from lorank.plan import RankPlan
from lorank.pruning.budgets import folder_names, read_budgets
from lorank.pruning.prune import Pruned, held_parameters, mean_loss, pruned_copies
from lorank.pruning.report import cost_markdown, draw_pruning_curve, energy_lines
from lorank.pruning.triplet_scores import choose_score
from lorank.received_files import check_adapter_folder
from lorank.recipe.recipe import Recipe
from lorank.report.adapter_card import write_adapter_card
from lorank.report.markdown import code, inline, prose
from lorank.report.rank_map import draw_rank_map
from lorank.runs.calibration_set import calibration_batches, calibration_rows, calibration_set_of
from lorank.runs.data_file import DataFile
from lorank.runs.prepare import prepare
from lorank.runs.pruning_data import recipe_of_file
from lorank.runs.recipe_values import pretrained_of
from lorank.scoring.batches import Batch, on_device_of
from lorank.tasks.loss_file import LOSSES
from lorank.training.prepared import Prepared

CURVE = "pruned.json"


def prune_adapter(
    adapter: Path,
    budget: str,
    output: Path,
    data: Recipe | DataFile | None,
    *,
    by: str | None = None,
    before: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **limits: Any,
) -> tuple[RankPlan, dict[str, Any]]:
    """Load an adapter, prune it to one budget, save it with its plan, and measure what that cost.

    With a recipe, triplets are scored on its calibration set (training examples), and both adapters are evaluated on its test
    part. With a file of labelled examples they are scored on a part of it and measured on the others. Without either, the base
    model that the adapter names is loaded, and pruning is by `"svd"`.

    Args:
        adapter: folder of a PEFT adapter.
        budget: as in `lorank.prune`.
        output: a new folder.
        data: the recipe that trained it, or a file; None: nothing is scored on examples or evaluated.
        by: score of the triplets.
        before: `metrics` and `loss` of the adapter on the test part, where they are known; None measures them.
        console: for lines of progress.
        **limits: as in `lorank.allocate`.

    Returns:
        The plan, and JSON values: `before` and `after`, each with adapter parameters, metrics and loss on the test part, and
        the mean loss on the calibration set, as far as they are known; and `energy_kept`. Also in `output/pruned.json`.

    Raises:
        OutputError: `output` is not empty.
        LorankError: as `lorank.prune`, an adapter that PEFT cannot load, or one for another task or number of labels than the
            data's.

    """
    _check(adapter, budget, output, data, by)
    loaded = _load(adapter, data, console or Console(quiet=True))
    copies = pruned_copies(loaded.model, (budget,), loaded.batches, by=by, **limits)
    with new_folder(output) as partial:
        known = loaded.measure(loaded.model, partial / "work", before)
        ((small, pruned),) = copies
        measured = {"before": {**known, "calibration_loss": pruned.loss_before}}
        measured |= loaded.write(small, pruned, partial, output.name, measured["before"])
        pruned.scores.save(partial / "scores.safetensors")
        write_json(partial / "pruned.json", measured)
        shutil.rmtree(partial / "work", ignore_errors=True)
    return pruned.plan, measured


def prune_to_budgets(
    adapter: Path,
    budgets: Sequence[str],
    output: Path,
    data: Recipe | DataFile | None,
    *,
    by: str | None = None,
    console: Console | None = None,
    **limits: Any,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The same for several budgets, with one loading and one scoring: a folder for each, `pruned.json` and `curve.png`.

    Args:
        adapter: as in `prune_adapter`.
        budgets: as in `prune_adapter`, each of them.
        output: a new folder, with one for each budget in it.
        data: as in `prune_adapter`.
        by: as in `prune_adapter`.
        console: for lines of progress.
        **limits: as in `lorank.allocate`.

    Returns:
        What is known of the adapter before, and budget -> the same after, with `energy_kept`.

    Raises:
        LorankError: as `prune_adapter`, or budgets that would go to the same folder.

    """
    _check(adapter, ",".join(budgets), output, data, by)
    folders = folder_names(budgets)
    loaded = _load(adapter, data, console or Console(quiet=True))
    copies = pruned_copies(loaded.model, budgets, loaded.batches, by=by, **limits)
    after: dict[str, dict[str, Any]] = {}
    with new_folder(output) as partial:
        before = loaded.measure(loaded.model, partial / "work", None)
        for budget, (small, pruned) in zip(budgets, copies, strict=True):
            before["calibration_loss"] = pruned.loss_before
            title = f"{output.name}-{folders[budget]}"
            found = loaded.write(small, pruned, partial / folders[budget], title, before)
            write_json(partial / folders[budget] / "pruned.json", {"before": before, **found})
            after[budget] = {**found["after"], "energy_kept": found["energy_kept"]}
        pruned.scores.save(partial / "scores.safetensors")
        write_json(partial / CURVE, {"before": before, "budgets": after})
        draw_pruning_curve(before, after, partial / "curve.png", f"{adapter.name}: {pruned.plan.provenance['method']}")
        shutil.rmtree(partial / "work", ignore_errors=True)
    return before, after


def _check(adapter: Path, budgets: str, output: Path, data: Recipe | DataFile | None, by: str | None) -> None:
    choose_score(by, data=data is not None)
    read_budgets(budgets)
    check_new_folder(output)
    if not (adapter / "adapter_config.json").is_file():
        raise AdapterError(f"{adapter} has no adapter_config.json; give the folder of a PEFT adapter")
    check_adapter_folder(adapter)


@dataclass(frozen=True)
class _Loaded:
    """An adapter on its base model, and what it is scored and measured on."""

    adapter: Path
    model: PeftModel
    batches: Sequence[Batch] | None
    prepared: Prepared | None
    measures_loss_alone: bool
    console: Console

    def measure(self, model: PeftModel, directory: Path, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Adapter parameters, and metrics and loss on the test part where there is one."""
        found: dict[str, Any] = {"adapter_parameters": held_parameters(model)}
        if self.prepared is None:
            return found
        if known is not None:
            return {**found, **known}
        rows = self.prepared.data.needs_test("to measure a pruned adapter")
        held = f"{found['adapter_parameters']:,} parameters"
        self.console.print(f"evaluating {held} on {len(rows):,} test examples", highlight=False)
        if self.measures_loss_alone:  # the prompts of its training are not known, so what it writes says nothing
            batches = [on_device_of(model, batch) for batch in calibration_batches(self.prepared, rows, 16)]
            return found | {"metrics": {}, "loss": mean_loss(model, batches)}
        metrics, loss = self.prepared.evaluate(model, directory)
        more = self.prepared.evaluate_more(model, directory)
        return found | {"metrics": metrics, "loss": loss, **({"more": more} if more else {})}

    def write(
        self, model: PeftModel, pruned: Pruned, folder: Path, title: str, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Save a pruned adapter with its plan, map and card, and measure it: `after` and `energy_kept`."""
        tokens = self.prepared is not None and self.prepared.base.new_tokens
        model.save_pretrained(str(folder / "adapter"), **({"save_embedding_layers": False} if tokens else {}))
        if tokens and self.prepared is not None:
            self.prepared.tokenizer.save_pretrained(str(folder / "adapter"))
        write_label_names(folder / "adapter", read_label_names(self.adapter) or label_names_of(model))
        pruned.plan.save(folder / "plan.json")
        method, held = pruned.plan.provenance["method"], f"{before['adapter_parameters']:,} parameters"
        heading = f"{self.adapter.name}: {method}\n{held}, now {pruned.plan.spending}"
        draw_rank_map(pruned.plan, folder / "ranks.png", heading, pruned.scores)
        after = self.measure(model, folder / "work", None) | {"calibration_loss": pruned.loss_after}
        if pruned.loss_by_svd is not None:
            after["calibration_loss_by_svd"] = pruned.loss_by_svd
        if (losses := folder / "work" / LOSSES).is_file():
            losses.replace(folder / LOSSES)
        shutil.rmtree(folder / "work", ignore_errors=True)
        measured = {"before": before, "after": after, "energy_kept": pruned.energy.record()}
        cut = f"Cut by `lorank prune` from an adapter of {held}, without training, to the budget {code(pruned.plan.budget)}"
        by = f"by {inline(method.removeprefix('prune by '))}" + (
            f", on {len(self.batches)} batches" if self.batches else ""
        )
        write_adapter_card(
            folder / "adapter",
            pruned.plan,
            [f"{cut}: {by}.", *(prose(f"{line}.") for line in energy_lines(measured))],
            title=title,
            method="pruning",
            num_labels=getattr(getattr(model, "config", None), "num_labels", 1),
            tables=cost_markdown(measured),
        )
        return {"after": after, "energy_kept": measured["energy_kept"]}


def _load(adapter: Path, data: Recipe | DataFile | None, console: Console) -> _Loaded:
    if data is None:
        model = on_own_device(load_adapted(adapter))
        _say(model, console)
        return _Loaded(adapter, model, None, None, measures_loss_alone=False, console=console)
    recipe, task_data = recipe_of_file(adapter, data) if isinstance(data, DataFile) else (data, None)
    check_adapter_task(adapter, pretrained_of(recipe), recipe.data.task, writes=recipe.data.writes)
    recipe, prepared = prepare(recipe, (), console, task_data)
    prepared.data.needs_test("to measure a pruned adapter")
    if not recipe.data.writes:
        check_adapter_labels(adapter, prepared.base, prepared.data.label_names)
    model = on_own_device(_on(prepared.load_model().model, adapter))
    _say(model, console)
    calibration = calibration_set_of(recipe)
    rows = calibration_rows(prepared.data.train, calibration.examples, recipe.seed)
    batches = [on_device_of(model, batch) for batch in calibration_batches(prepared, rows, calibration.batch_size)]
    alone = isinstance(data, DataFile) and recipe.data.writes
    return _Loaded(adapter, model, batches, prepared, measures_loss_alone=alone, console=console)


def _say(model: PeftModel, console: Console) -> None:
    console.print(f"scoring the triplets of {held_parameters(model):,} adapter parameters", highlight=False)


def _on(base: Any, adapter: Path) -> PeftModel:
    give = "give the recipe that trained it as --data"
    with loadable(
        lambda why: AdapterError(f"{adapter} cannot be loaded on the base model of the recipe: {why}; {give}")
    ):
        return PeftModel.from_pretrained(base, str(adapter))
