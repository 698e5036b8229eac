"""One method of a run: scores, plan, adapter, evaluation. What a part has left in its folder is read back."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console

from lorank.artefact import write_json
from lorank.errors import OutputError
from lorank.methods import METHODS
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import CalibrationSection
from lorank.runs.calibration_set import score_frozen, subject_of
from lorank.runs.checks import allocate_for, equal_scores
from lorank.scores import ImportanceScores
from lorank.targets import Target, unit_costs
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.prepared import Prepared
from lorank.training.pruned_stage import allocate_in_training, pruning_of
from lorank.training.stage1 import score_units
from lorank.training.stage1_adapter import keep_stage1
from lorank.training.stage2 import Evaluation, evaluate_adapter, train_plan
from lorank.validation import first_difference


@dataclass(frozen=True)
class MethodRun:
    """The parts of a run for one method; what a part has left in `folder` is read back.

    The first of several processes writes; each part ends with all of them waiting for it and reading the same file.

    Attributes:
        recipe: of the run.
        prepared: what the stages need of it.
        method: the recipe's, or a baseline.
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
        self.keep_stage1(plan, scores)
        stage = "stage2" if self.retrains() else "stage1"
        start = start_of(self.method, self.prepared, self.recipe.calibration, plan)
        return {**asdict(self.evaluation(plan, stage=stage, start=start)), **self.cost_of_scores(scores)}

    def allocate_in_training(self) -> None:
        """For a method that allocates while it trains: leaves scores and plan, and the adapter if that is kept."""
        if METHODS[self.method].trained != "pruned triplets":
            return
        plan = self.folder / "plan.json"
        last_written = plan if self.retrains() else self.folder / "adapter"
        if not (last_written.exists() and plan.exists()):
            own = {**self.prepared.provenance, "preset": pruning_of(self.recipe, self.method)[0]}
            allocate_in_training(self.recipe, self.method, self.prepared, self.folder, self.console, own)

    def retrains(self) -> bool:
        """Whether a second stage trains the plan from a fresh start."""
        if METHODS[self.method].trained == "triplets":
            return not self.recipe.stage2.skip
        pruned = METHODS[self.method].trained == "pruned triplets"
        return not pruned or pruning_of(self.recipe, self.method)[1].ending == "retrain"

    def cost_of_scores(self, scores: ImportanceScores) -> dict[str, Any]:
        """What came before, or beside, the training of the adapter."""
        said = scores.provenance
        if "stage1" in said and self.retrains():
            return {"stage1": {**said["stage1"], "passes": said["scoring_passes"]}}
        if METHODS[self.method].scorer is not None and "seconds" in said:
            return {"calibration": {"examples": said.get("examples", 0), "seconds": said["seconds"]}}
        if METHODS[self.method].trained == "nothing":
            return {}
        checkpoint = latest_checkpoint(self.folder / "stage1")
        if not self.retrains() or checkpoint is None:
            return {"scoring_passes": said["scoring_passes"]}
        progress = read_progress(checkpoint)
        return {"stage1": {"steps": progress.step, "seconds": progress.seconds, "passes": said["scoring_passes"]}}

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
        if METHODS[method].trained == "triplets":
            own = {**prepared.provenance, "method": method, "scoring": recipe.scoring.model_dump()}
            return score_units(recipe, prepared, self.folder / "stage1", self.console, own)
        if METHODS[method].scorer is not None:
            self.console.print(f"{method}: scoring the frozen model", highlight=False)
            preset = recipe.preset if method == recipe.method else METHODS[method].default_preset
            return score_frozen(prepared, recipe.calibration, method, preset)
        own = {**prepared.provenance, "method": method, "preset": None}
        return equal_scores(method, recipe, prepared.targets, own)

    def plan(self, scores: ImportanceScores) -> RankPlan:
        """The plan that the scores give within the recipe's budget."""
        path = self.folder / "plan.json"
        if not path.exists():
            plan = allocate_for(self.method, self.recipe, scores)
            if processes().is_main_process:
                plan.save(path)
        processes().wait_for_everyone()
        plan = RankPlan.load(path)
        if plan.provenance.get("scores") != scores.fingerprint:
            raise OutputError(
                f"{path} was made from other scores than those in {self.folder}; remove it to allocate again"
            )
        return plan

    def keep_stage1(self, plan: RankPlan, scores: ImportanceScores) -> None:
        """For a method whose second stage is skipped: leaves stage 1's triplets as the adapter."""
        kept = METHODS[self.method].trained == "triplets" and not self.retrains()
        if kept and not (self.folder / "adapter").exists():
            keep_stage1(self.prepared, self.recipe.stage1.initial_rank, plan, scores, self.folder)
        processes().wait_for_everyone()

    def evaluation(
        self, plan: RankPlan, *, stage: str = "stage2", start: Callable[[PeftModel], None] | None = None
    ) -> Evaluation:
        """Train the plan's adapter unless it is there (`stage` is what trains it), and evaluate it on the test part."""
        path = self.folder / "evaluation.json"
        if not path.exists():
            if not (self.folder / "adapter").exists():
                name = f"stage 2, {self.method}"
                self.console.print(f"{name}: training {plan.spent:,} adapter parameters", highlight=False)
                train_plan(self.prepared, self.recipe.stage2, plan, self.folder, self.console, name, start)
            count = len(self.prepared.data.test)
            self.console.print(f"evaluating {self.method} on {count:,} test examples", highlight=False)
            evaluation = evaluate_adapter(self.prepared, plan, self.folder, stage)
            if processes().is_main_process:
                write_json(path, asdict(evaluation))
        processes().wait_for_everyone()
        try:
            return Evaluation(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path}: damaged ({error}); remove it to evaluate again") from None


def start_of(
    method: str, prepared: Prepared, calibration: CalibrationSection, plan: RankPlan
) -> Callable[[PeftModel], None] | None:
    """How a fresh adapter of the method starts, where that is not PEFT's start; None also for a name that is no method."""
    start = METHODS[method].start if method in METHODS else None
    if start is None:
        return None

    def begin(model: PeftModel) -> None:
        inside = model.get_base_model()
        model.to(processes().device)
        layers = {name: inside.get_submodule(name) for name, rank in plan.ranks.items() if rank}
        adapted = tuple(Target(name, layer.in_features, layer.out_features) for name, layer in layers.items())
        subject = subject_of(prepared, calibration, inside, adapted, prepared.provenance)
        most = max(subject.options.components, *plan.ranks.values())
        start(model, replace(subject, options=subject.options.model_copy(update={"components": most})))

    return begin
