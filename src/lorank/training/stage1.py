"""Stage 1: train triplet adapters, score their units on the held-out scoring set (I-LoRA, section 1.4, phase 1)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from peft import get_peft_model
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorank.adapter.path import capture, path_point
from lorank.adapter.triplet import TripletAdapter, triplet_config
from lorank.allocation.budgeted import allocate
from lorank.allocation.schedule import cubic_budget
from lorank.engine.accumulate import ScoreAccumulator
from lorank.engine.path import PathScorer, model_loss
from lorank.engine.path_options import PathScoreOptions
from lorank.errors import TargetError
from lorank.plan import RankPlan
from lorank.recipe.recipe import Recipe
from lorank.runs.scoring_set import ScoringBatches, split_for_scoring
from lorank.scores import ImportanceScores
from lorank.targets import Target, unit_costs
from lorank.tasks.data import content_hash
from lorank.tasks.encoding import collator
from lorank.training.prepared import Prepared
from lorank.training.stage import initial_config, train_stage

STAGE = "stage 1"


def score_units(
    recipe: Recipe,
    prepared: Prepared,
    directory: Path,
    console: Console,
    provenance: Mapping[str, Any],
) -> ImportanceScores:
    """Train stage 1, or continue it, and return the score of every unit.

    Raises:
        DataError: no scoring batch, or nothing left to train on.
        TrainingError: a loss that is not finite.

    """
    train_rows, scoring_rows = split_for_scoring(recipe, prepared.data.train)
    targets, task = prepared.targets, prepared.load_model()
    section, options = recipe.stage1, recipe.scoring
    config = initial_config(targets, task, rank=section.initial_rank, scale=recipe.scale, dropout=recipe.lora_dropout)
    model = get_peft_model(task.model, triplet_config(config))
    adapter = TripletAdapter.of(model)
    if set(adapter.names) != {target.name for target in targets}:
        raise TargetError(
            f"PEFT adapted {len(adapter.names)} modules where {len(targets)} were targeted; name targets in full"
        )
    scorer = PathScorer(
        model,
        adapter,
        PathScoreOptions(**options.model_dump(include=set(PathScoreOptions.model_fields))),
        # Taken before any checkpoint is loaded, so a resumed run has the same initial values.
        baseline=capture(adapter, options.moved) if options.baseline == "initial" else None,
        seed=recipe.seed,
        loss_scale=1024.0 if recipe.precision == "fp16" else 1.0,
    )
    batches = ScoringBatches(prepared.tokenize(scoring_rows), collator(prepared.tokenizer, prepared.task_type), recipe)
    during = ScoringCallback(recipe, targets, scorer, batches, console, provenance)
    progress = train_stage(
        name=STAGE,
        prepared=prepared,
        section=section,
        directory=directory,
        model=model,
        rows=prepared.tokenize(train_rows),
        console=console,
        callbacks=[during],
        stage_state=during,
        regularised=adapter,
        orthogonality_weight=section.orthogonality,
        path_seed=recipe.seed if section.train_on_path else None,
    )
    began = time.monotonic()
    rule = f"; rule: {during.stop_rule}" if during.stop_rule else ""
    console.print(f"{STAGE}: ended, {during.ended}{rule}", highlight=False)
    if options.when == "after":
        for draw in range(len(batches)):
            during.add_batch(draw)
    scores = during.scores()
    reduction = loss_reduction(scorer, batches) if options.parameter_factor == "signed" else None
    found = {
        "scoring_set": content_hash(scoring_rows),
        "scoring_examples": len(scoring_rows),
        "scoring_passes": during.accumulator.count * scorer.passes_per_batch,
        "stage1": {
            "steps": progress.step,
            "seconds": round(progress.seconds + time.monotonic() - began, 3),
            "ended": during.ended,
            "stop_rule": during.stop_rule,
        },
    }
    return replace(scores, provenance={**scores.provenance, **found, "loss_reduction": reduction})


class ScoringCallback(TrainerCallback):
    """Scores a batch every few optimizer steps, prunes on the way or ends the stage where the recipe asks for it."""

    def __init__(
        self,
        recipe: Recipe,
        targets: tuple[Target, ...],
        scorer: PathScorer,
        batches: ScoringBatches,
        console: Console,
        provenance: Mapping[str, Any],
    ) -> None:
        self.recipe, self.scorer, self.batches, self.console = recipe, scorer, batches, console
        self.costs, self.provenance = unit_costs(targets), dict(provenance)
        self.accumulator = ScoreAccumulator(recipe.scoring.accumulate, recipe.scoring.ema_decay)
        self.window_ranks: dict[str, int] | None = None
        self.moved_shares: list[float] = []
        self.ended = "all steps done"
        self.check_finite: Callable[[], None] = lambda: None

    @property
    def stop_rule(self) -> str | None:
        """The rule for an early end in words, or None."""
        rule = self.recipe.stage1.stop_when_stable
        if rule is None:
            return None
        windows = "1 window" if rule.windows == 1 else f"{rule.windows} windows in a row"
        return f"{windows} of {rule.window} scoring batches moved less than {rule.share:.1%} of the plan's parameters"

    def add_batch(self, draw: int) -> None:
        """Score one batch."""
        device = self.scorer.adapter.lambdas[0].device
        self.accumulator.add(self.scorer.batch_scores(self.batches.batch(draw, device), draw))

    def scores(self) -> ImportanceScores:
        """The scores so far; one host sync. With several processes, those of the first."""
        self.check_finite()
        errors = self.accumulator.standard_error()
        return ImportanceScores(
            self._by_module(self.accumulator.value()),
            self.costs,
            None if errors is None else self._by_module(errors),
            {**self.provenance, "scoring_batches": self.accumulator.count},
        )

    def cut(self, scores: ImportanceScores, budget: str | int) -> RankPlan:
        """The plan that scores mean under the recipe's limits."""
        return allocate(scores, budget, scale=self.recipe.scale, **self.recipe.allocation.model_dump())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Score, then prune or stop where it is due."""
        options, section = self.recipe.scoring, self.recipe.stage1
        first = int(options.warmup * state.max_steps)
        if options.when == "after" or state.global_step <= first or (state.global_step - first) % options.every:
            return
        self.add_batch(self.accumulator.count)
        if section.pruning == "cubic" and self.accumulator.count % 10 == 0:
            self._prune(state.global_step, first, state.max_steps)
        rule = section.stop_when_stable
        if rule is not None and self.accumulator.count % rule.window == 0 and self._is_stable(state.global_step):
            self.ended = f"stable at step {state.global_step} of {state.max_steps}"
            control.should_training_stop = True

    def _prune(self, step: int, first: int, last: int) -> None:
        """Switch off the least important triplets at the budget of this step (reading A8); they may come back."""
        scores = self.scores()
        initial = sum(len(values) * self.costs[name] for name, values in scores.scores.items())
        final = self.cut(scores, self.recipe.budget).budget_parameters
        plan = self.cut(scores, cubic_budget(step, start=initial, final=final, first_step=first, last_step=last))
        kept = {}
        for name, values in scores.scores.items():
            keep = torch.zeros(len(values), dtype=torch.bool)
            keep[torch.from_numpy(np.argsort(-values, kind="stable")[: plan.ranks[name]].copy())] = True
            kept[name] = keep
        self.scorer.adapter.switch_off(kept)

    def _is_stable(self, step: int) -> bool:
        rule = self.recipe.stage1.stop_when_stable
        assert rule is not None
        plan = self.cut(self.scores(), self.recipe.budget)
        if self.window_ranks is not None:
            before = RankPlan(self.window_ranks, self.costs, plan.budget, plan.budget_parameters)
            self.moved_shares.append(plan.moved_share(before))
            self.console.print(
                f"{STAGE}: step {step}  {self.moved_shares[-1]:.1%} of the plan's parameters moved", highlight=False
            )
        self.window_ranks = dict(plan.ranks)
        last = self.moved_shares[-rule.windows :]
        return len(last) == rule.windows and max(last) < rule.share

    def _by_module(self, units: torch.Tensor) -> dict[str, np.ndarray]:
        names, ranks = self.scorer.adapter.names, self.scorer.adapter.ranks
        # Kernels may differ in the last bit from process to process; what is decided must not.
        units = broadcast(units.contiguous())
        return {n: part.double().cpu().numpy() for n, part in zip(names, units.split(list(ranks)), strict=True)}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """For a checkpoint."""
        return self.accumulator.state(), {
            "window_ranks": self.window_ranks,
            "moved_shares": self.moved_shares,
            "ended": self.ended,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], details: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.accumulator.restore(dict(tensors), self.scorer.adapter.lambdas[0].device)
        self.window_ranks, self.ended = details["window_ranks"], details["ended"]
        self.moved_shares = list(details["moved_shares"])


def loss_reduction(scorer: PathScorer, batches: ScoringBatches) -> float:
    """`L(θ0) - L(θ)` on the scoring set at the end of the stage: what signed shares add up to if scored there."""
    device, total = scorer.adapter.lambdas[0].device, 0.0
    scorer.model.eval()
    with torch.no_grad():
        for draw in range(len(batches)):
            batch = batches.batch(draw, device)
            after = float(model_loss(scorer.model, batch))
            with path_point(scorer.adapter, 0.0, moved=scorer.options.moved, baseline=scorer.baseline):
                total += float(model_loss(scorer.model, batch)) - after
    return total / len(batches)
