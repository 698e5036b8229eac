"""One method of a run: scores, plan, adapter, evaluation. What a part has left in its folder is read back."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console

from lorank.allocation.cut_history import CUTS
from lorank.artefact import copy_file, read_json, write_json
from lorank.errors import OutputError
from lorank.methods import METHODS
from lorank.models.loading import on_own_device
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.received_files import record_of
from lorank.recipe.recipe import Recipe
from lorank.runs.calibration_set import score_frozen, scoring_input
from lorank.runs.checks import allocate_for, equal_scores
from lorank.runs.choices import allocation_stage
from lorank.scores import ImportanceScores
from lorank.targets import Target, unit_costs
from lorank.tasks.data import content_hash
from lorank.tasks.section import SCORING
from lorank.training.adapter_sums import difference
from lorank.training.allocation_stage import allocate_in_training
from lorank.training.checkpoints import latest_checkpoint, read_progress, stage_folder
from lorank.training.full_stage import FullResult
from lorank.training.plan_stage import Evaluation, evaluate_adapter, train_plan
from lorank.training.prepared import Prepared
from lorank.validation import first_difference


@dataclass(frozen=True)
class MethodRun:
    """The parts of a run for one method; what a part has left in `folder` is read back.

    The first of several processes writes; each part ends with all of them waiting for it and reading the same file.

    Attributes:
        recipe: of the method (of a baseline: `Recipe.of`).
        prepared: what the stages need of the run's.
        method: the recipe's, or the name of a plan that was made before.
        folder: of the method: the run's own, or one under `baselines/`.
        console: for lines of progress.

    """

    recipe: Recipe
    prepared: Prepared
    method: str
    folder: Path
    console: Console

    def result(self) -> dict[str, Any]:
        """Score, allocate, train and evaluate, or read back what of it is there; as in metrics.json."""
        self.allocate_in_training()
        scores = self.scores()
        plan = self.plan(scores)
        start = start_of(self.recipe, self.prepared, plan)
        return {
            **as_result(self.evaluation(plan, kept=not self.retrains(), start=start)),
            **self.cost_of_scores(scores),
        }

    def allocate_in_training(self) -> None:
        """For a method that keeps what it trains, or cuts on the way: leaves scores and plan, and the adapter if it is kept."""
        method = METHODS[self.method]
        if not method.allocates_in_training or (method.has_scoring_set and self.retrains()):
            return
        plan = self.folder / "plan.json"
        last_written = plan if self.retrains() else self.folder / "adapter"
        if not (last_written.exists() and plan.exists()):
            self._remove_evaluation_of_no_adapter()
            self._allocated(self.folder)

    def _remove_evaluation_of_no_adapter(self) -> None:
        """What was measured of an adapter that is gone is not what would be measured of the next one."""
        if not (self.folder / "adapter").exists() and processes().is_main_process:
            (self.folder / "evaluation.json").unlink(missing_ok=True)
        processes().wait_for_everyone()

    def retrains(self) -> bool:
        """Whether a second stage trains the plan from a fresh start."""
        return not self.recipe.keeps_triplets

    @property
    def _search_folder(self) -> Path:
        return stage_folder(self.folder, "search", "stage1")

    def _allocated(self, results: Path) -> ImportanceScores:
        stage = allocation_stage(self.recipe, self.prepared.data)
        own = {**self.prepared.provenance, "preset": stage.chosen.preset}
        if stage.scoring_rows is not None:
            own["scoring_set"] = content_hash(stage.scoring_rows)
        return allocate_in_training(stage, self.prepared, self.folder, results, self.console, own).scores

    def cost_of_scores(self, scores: ImportanceScores) -> dict[str, Any]:
        """What came before, or beside, the training of the adapter."""
        said = scores.provenance
        if "stage1" in said and self.retrains():  # of earlier versions
            return {"search": {**said["stage1"], "passes": said["scoring_passes"]}}
        if METHODS[self.method].scorer is not None and "seconds" in said:
            return {"calibration": {"examples": said.get("examples", 0), "seconds": said["seconds"]}}
        if not METHODS[self.method].allocates_in_training:
            return {}
        checkpoint = latest_checkpoint(self._search_folder)
        if not self.retrains() or checkpoint is None:
            return {"scoring_passes": said["scoring_passes"]}
        progress = read_progress(checkpoint)
        search = {"steps": progress.step, "seconds": progress.seconds, "passes": said["scoring_passes"]}
        return {"search": search | ({"skipped_steps": list(progress.skipped)} if progress.skipped else {})}

    def scores(self) -> ImportanceScores:
        """Scores of the method, measured now or before."""
        path, costs = self.folder / "scores.safetensors", unit_costs(self.prepared.targets)
        if not path.exists():
            scores = self._measured_scores()
            if processes().is_main_process:
                scores.save(path)
        processes().wait_for_everyone()
        scores = ImportanceScores.load(path)
        costs = {name: cost for name, cost in costs.items() if name not in scores.provenance.get("left_out", ())}
        if difference := first_difference(dict(scores.unit_costs), costs):
            raise OutputError(f"{path} is for another model or other targets: {difference}; remove it to score again")
        return scores

    def _measured_scores(self) -> ImportanceScores:
        recipe, prepared, method = self.recipe, self.prepared, self.method
        if METHODS[method].allocates_in_training:
            scores = self._allocated(self._search_folder)
            # A search of a version that wrote no cuts has none.
            if processes().is_main_process and (cuts := self._search_folder / CUTS).is_file():
                copy_file(cuts, self.folder / CUTS)
            return scores
        if METHODS[method].scorer is not None:
            self.console.print(f"{method}: scoring the frozen model", highlight=False)
            return score_frozen(prepared, recipe)
        own = {**prepared.provenance, "method": method, "preset": None}
        return equal_scores(recipe, prepared.targets, own)

    def plan(self, scores: ImportanceScores) -> RankPlan:
        """The plan that the scores give within the recipe's budget."""
        path = self.folder / "plan.json"
        if not path.exists():
            plan = allocate_for(self.recipe, scores)
            if processes().is_main_process:
                plan.save(path)
        processes().wait_for_everyone()
        plan = RankPlan.load(path)
        if plan.provenance.get("scores") != scores.fingerprint:
            raise OutputError(
                f"{path} was made from other scores than those in {self.folder}; remove it to allocate again"
            )
        return plan

    def evaluation(
        self, plan: RankPlan, *, kept: bool = False, start: Callable[[PeftModel], None] | None = None
    ) -> Evaluation:
        """Train the plan's adapter unless it is there (it is `kept` of the allocation), and evaluate it on the test part."""
        path = self.folder / "evaluation.json"
        self._remove_evaluation_of_no_adapter()
        if not (self.folder / "adapter").exists():
            name = f"train, {self.method}"
            self.console.print(f"{name}: training {plan.spent:,} adapter parameters", highlight=False)
            train_plan(self.prepared, self.recipe.train, plan, self.folder, self.console, name, start)
        if not path.exists():
            parts = self.prepared.data.parts.items()
            named = [f"{len(rows):,} examples of {name}" for name, rows in parts if name not in ("train", SCORING)]
            if named:
                self.console.print(f"evaluating {self.method} on {', '.join(named)}", highlight=False)
            stage = stage_folder(self.folder, "train", "stage1" if kept else "stage2")
            evaluation = evaluate_adapter(self.prepared, plan, self.folder, stage)
            if processes().is_main_process:
                write_json(path, as_result(evaluation))
        processes().wait_for_everyone()
        try:
            found = record_of(Evaluation, read_json(path))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path}: damaged ({error}); remove it to evaluate again") from None
        if problem := difference(self.folder / "adapter", asdict(found)):
            raise OutputError(
                f"{self.folder / 'adapter'}: {problem}, so it is not what was evaluated; put the file back, or remove "
                "this folder and run the same command again: the adapter is written again from the last checkpoint"
            )
        return found


def as_result(measured: Evaluation | FullResult) -> dict[str, Any]:
    """What metrics.json says of a method; `skipped_steps` and the sums of the adapter only where there are some."""
    found = {**asdict(measured), "skipped_steps": list(measured.skipped_steps)}
    return {
        key: one for key, one in found.items() if one or key not in ("skipped_steps", "adapter_sha256", "adapter_files")
    }


def start_of(recipe: Recipe, prepared: Prepared, plan: RankPlan) -> Callable[[PeftModel], None] | None:
    """How a fresh adapter of the recipe's method starts, where that is not PEFT's start."""
    method = METHODS[recipe.method]
    if method.start is None:
        return None

    def begin(model: PeftModel) -> None:
        inside = model.get_base_model()
        on_own_device(model)
        layers = {name: inside.get_submodule(name) for name, rank in plan.ranks.items() if rank}
        adapted = tuple(Target(name, layer.in_features, layer.out_features) for name, layer in layers.items())
        method.set_start(model, scoring_input(prepared, recipe, inside, adapted, prepared.provenance))

    return begin
