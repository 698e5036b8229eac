"""A stage that decides the ranks while it trains (I-LoRA, IGU-LoRA, AdaLoRA): RankAllocation in a run's Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console

from lorank.engine.assembly import schedule_of
from lorank.in_training.rank_allocation import RankAllocation
from lorank.methods.choose import Chosen, choices_in
from lorank.processes import processes
from lorank.recipe.sections import TrainingSection
from lorank.training.checkpoints import stage_folder
from lorank.training.plan_stage import save_adapter, tokenizer_beside
from lorank.training.prepared import Prepared
from lorank.training.stage import initial_config, train_stage
from lorank.training.steps import check_warmup, stage_steps, steps_per_epoch


@dataclass(frozen=True)
class AllocationStage:
    """What such a stage is about.

    Attributes:
        name: for messages.
        kept: whether its adapter is the one that is served.
        chosen: method, preset and choices.
        budget: as it was asked for; or one for each group of modules.
        section: how it trains.
        initial_rank: triplets of every module at the start.
        rows: what it trains on.
        scoring_rows: what a scoring set is made of; None for methods without one, or where it is `rows`.
        count: rows that a Trainer sees in an epoch: fewer than `rows` where they are packed.

    """

    name: str
    kept: bool
    chosen: Chosen
    budget: str | Mapping[str, str]
    section: TrainingSection
    initial_rank: int
    rows: Dataset
    scoring_rows: Dataset | None
    count: int

    def check_schedule(self) -> None:
        """Whether the stage is long enough to cut in, and longer than its warm-up, before anything is trained.

        Raises:
            AllocationError: it is too short to cut in.
            RecipeError: its warm-up is as long.

        """
        check_warmup("train" if self.kept else "search", self.section, self.count)
        steps = stage_steps(self.section, self.count)
        schedule_of(self.chosen.choices, steps, steps_per_epoch(self.section, self.count))


def allocate_in_training(
    stage: AllocationStage,
    prepared: Prepared,
    directory: Path,
    results: Path,
    console: Console,
    provenance: Mapping[str, Any],
) -> RankAllocation:
    """Train with allocation, or continue; write scores, plan and heat map, and the adapter if it is kept.

    Args:
        stage: what is trained.
        prepared: the run's.
        directory: of the method's run: checkpoints go below it, and the adapter.
        results: folder for scores, plan and heat map.
        console: for lines of progress.
        provenance: of scores and plan.

    Returns:
        The allocation, with its scores and its plan.

    Raises:
        TrainingError: a loss that is not finite, or nothing to allocate by.

    """
    chosen, settings, task = stage.chosen, prepared.settings, prepared.load_model()
    config = initial_config(
        prepared.targets, task, rank=stage.initial_rank, scale=settings.scale, dropout=settings.lora_dropout
    )
    model = task.adapted(config)
    scoring = None
    if stage.scoring_rows is not None:
        scoring = prepared.like_training(stage.scoring_rows)
    allocation = RankAllocation(
        chosen.method,
        stage.budget,
        preset=chosen.preset,
        scoring_data=scoring,
        output_dir=results,
        provenance=provenance,
        **{key: value for section in choices_in(chosen.choices).values() for key, value in section},
    )
    allocation.says_what_it_did = False  # the command does
    allocation.rate_name = "train.learning_rate" if stage.kept else "search.learning_rate"
    train_stage(
        name=stage.name,
        prepared=prepared,
        section=stage.section,
        directory=stage_folder(directory, "train" if stage.kept else "search", "stage1"),
        model=model,
        rows=prepared.stage_rows(stage.rows),
        console=console,
        evaluated=stage.kept,
        callbacks=[allocation],
    )
    found = allocation.scores.provenance
    if rule := found["stop_rule"]:
        console.print(f"{stage.name}: ended, {found['ended']}; rule: {rule}", highlight=False)
    if stage.kept:
        save_adapter(model, directory, tokenizer_beside(prepared))
    processes().wait_for_everyone()  # until the first has written scores and plan
    return allocation
