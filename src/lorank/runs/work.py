"""The parts of a run for one method: scores, plan, adapter, evaluation. What a part has left in its folder is read back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lorank.artefact import write_json
from lorank.errors import OutputError
from lorank.methods import METHODS
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.runs.calibration_set import score_frozen, subject_of
from lorank.runs.checks import allocate_for, equal_scores
from lorank.scores import ImportanceScores
from lorank.targets import Target, unit_costs
from lorank.tasks.data import TaskData
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.pruned_stage import allocate_in_training, pruning_of
from lorank.training.stage1 import score_units
from lorank.training.stage1_adapter import keep_stage1
from lorank.training.stage2 import Evaluation, evaluate_adapter, train_plan
from lorank.validation import first_difference


@dataclass(frozen=True)
class Work:
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
        if METHODS[method].trained == "triplets":
            return not self.recipe.stage2.skip
        pruned = METHODS[method].trained == "pruned triplets"
        return not pruned or pruning_of(self.recipe, method)[1].ending == "retrain"

    def cost_of_scores(self, method: str, folder: Path, scores: ImportanceScores) -> dict[str, Any]:
        """What came before, or beside, the training of the adapter."""
        made = scores.provenance
        if "stage1" in made and self.retrains(method):
            return {"stage1": {**made["stage1"], "passes": made["scoring_passes"]}}
        if METHODS[method].scorer is not None and "seconds" in made:
            return {"calibration": {"examples": made.get("examples", 0), "seconds": made["seconds"]}}
        if METHODS[method].trained == "nothing":
            return {}
        checkpoint = latest_checkpoint(folder / "stage1")
        if not self.retrains(method) or checkpoint is None:
            return {"scoring_passes": made["scoring_passes"]}
        progress = read_progress(checkpoint)
        return {"stage1": {"steps": progress.step, "seconds": progress.seconds, "passes": made["scoring_passes"]}}

    def scores(self, method: str, folder: Path) -> ImportanceScores:
        """Scores of the method, measured now or before."""
        path, costs = folder / "scores.safetensors", unit_costs(self.targets)
        if not path.exists():
            if METHODS[method].trained == "triplets":
                own = {**self.provenance, "method": method, "scoring": self.recipe.scoring.model_dump()}
                directory = folder / "stage1"
                scores = score_units(self.recipe, self.data, self.targets, self.tokenizer, directory, self.console, own)
            elif METHODS[method].scorer is not None:
                self.console.print(f"{method}: scoring the frozen model", highlight=False)
                scores = score_frozen(self.recipe, method, self.data, self.targets, self.tokenizer, self.provenance)
            else:
                own = {**self.provenance, "method": method, "preset": None}
                scores = equal_scores(method, self.recipe, self.targets, own)
            if processes().is_main_process:
                scores.save(path)
        processes().wait_for_everyone()
        scores = ImportanceScores.load(path)
        costs = {name: cost for name, cost in costs.items() if name not in scores.provenance.get("left_out", ())}
        if difference := first_difference(dict(scores.unit_costs), costs):
            raise OutputError(f"{path} is for another model or other targets: {difference}; remove it to score again")
        return scores

    def plan(self, method: str, folder: Path, scores: ImportanceScores) -> RankPlan:
        """The plan that the scores give within the recipe's budget."""
        path = folder / "plan.json"
        if not path.exists():
            plan = allocate_for(method, self.recipe, scores)
            if processes().is_main_process:
                plan.save(path)
        processes().wait_for_everyone()
        plan = RankPlan.load(path)
        if plan.provenance.get("scores") != scores.fingerprint:
            raise OutputError(f"{path} was made from other scores than those in {folder}; remove it to allocate again")
        return plan

    def keep_stage1(self, method: str, folder: Path, plan: RankPlan, scores: ImportanceScores) -> None:
        """For a method whose second stage is skipped: leaves stage 1's triplets as the adapter."""
        if METHODS[method].trained == "triplets" and not self.retrains(method) and not (folder / "adapter").exists():
            keep_stage1(self.recipe, self.data, self.targets, plan, scores, folder)
        processes().wait_for_everyone()

    def start_of(self, method: str, plan: RankPlan) -> Callable[[PeftModel], None] | None:
        """How a fresh adapter of the method starts, where that is not PEFT's start."""
        start = METHODS[method].start if method in METHODS else None
        if start is None:
            return None

        def begin(model: PeftModel) -> None:
            inside = model.get_base_model()
            model.to(processes().device)
            layers = {name: inside.get_submodule(name) for name, rank in plan.ranks.items() if rank}
            adapted = tuple(Target(name, layer.in_features, layer.out_features) for name, layer in layers.items())
            subject = subject_of(self.recipe, inside, self.data, adapted, self.tokenizer, self.provenance)
            enough = subject.options.model_copy(
                update={"components": max(subject.options.components, *plan.ranks.values())}
            )
            start(model, replace(subject, options=enough))

        return begin

    def evaluation(
        self,
        name: str,
        folder: Path,
        plan: RankPlan,
        *,
        stage: str = "stage2",
        start: Callable[[PeftModel], None] | None = None,
    ) -> Evaluation:
        """Train the plan's adapter unless it is there (`stage` is what trains it), and evaluate it on the test part."""
        path = folder / "evaluation.json"
        if not path.exists():
            if not (folder / "adapter").exists():
                named = f"stage 2, {name}"
                self.console.print(f"{named}: training {plan.spent:,} adapter parameters", highlight=False)
                train_plan(self.recipe, self.data, plan, self.tokenizer, folder, self.console, named, start)
            self.console.print(f"evaluating {name} on {len(self.data.test):,} test examples", highlight=False)
            evaluation = evaluate_adapter(self.recipe, self.data, plan, self.tokenizer, folder, stage)
            if processes().is_main_process:
                write_json(path, asdict(evaluation))
        processes().wait_for_everyone()
        try:
            return Evaluation(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path}: damaged ({error}); remove it to evaluate again") from None
