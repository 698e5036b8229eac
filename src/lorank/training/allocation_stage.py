"""A stage that decides the ranks while it trains (I-LoRA's stage 1, IGU-LoRA, AdaLoRA): RankAllocation in a run's Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from rich.console import Console

from lorank.engine.cut_rules import schedule_of
from lorank.in_training.rank_allocation import RankAllocation
from lorank.methods.choose import Chosen
from lorank.processes import processes
from lorank.recipe.sections import Stage1Section
from lorank.training.prepared import Prepared
from lorank.training.stage import initial_config, train_stage
from lorank.training.stage2 import save_adapter
from lorank.training.steps import stage_steps, steps_per_epoch


@dataclass(frozen=True)
class AllocationStage:
    """What such a stage is about.

    Attributes:
        name: for messages.
        chosen: method, preset and choices.
        budget: as it was asked for.
        section: how it trains, and the initial rank.
        rows: what it trains on.
        scoring_rows: what a scoring set is made of; None for methods without one, or where it is `rows`.

    """

    name: str
    chosen: Chosen
    budget: str
    section: Stage1Section
    rows: Dataset
    scoring_rows: Dataset | None = None

    def check_schedule(self) -> None:
        """Whether the stage is long enough to cut in, before anything is trained.

        Raises:
            AllocationError: it is not.

        """
        steps = stage_steps(self.section, len(self.rows))
        schedule_of(self.chosen.options, steps, steps_per_epoch(self.section, len(self.rows)))


def allocate_in_training(
    stage: AllocationStage,
    prepared: Prepared,
    directory: Path,
    results: Path,
    console: Console,
    provenance: Mapping[str, Any],
) -> RankAllocation:
    """Train with allocation, or continue; write scores, plan and heat map, and with `ending: continue` the adapter.

    Args:
        stage: what is trained.
        prepared: the run's.
        directory: of the method's run: `stage1` in it is for checkpoints, and the adapter goes there.
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
        prepared.targets, task, rank=stage.section.initial_rank, scale=settings.scale, dropout=settings.lora_dropout
    )
    model = get_peft_model(task.model, config)
    scoring = None
    if stage.scoring_rows is not None:
        scoring = prepared.tokenize(stage.scoring_rows).remove_columns("length")
    allocation = RankAllocation(
        chosen.method,
        stage.budget,
        preset=chosen.preset,
        scoring_data=scoring,
        output_dir=results,
        provenance=provenance,
        **chosen.options.model_dump(),
        **chosen.ranks,
    )
    train_stage(
        name=stage.name,
        prepared=prepared,
        section=stage.section,
        directory=directory / "stage1",
        model=model,
        rows=prepared.tokenize(stage.rows),
        console=console,
        callbacks=[allocation],
    )
    found = allocation.scores.provenance
    if rule := found["stop_rule"]:
        console.print(f"{stage.name}: ended, {found['ended']}; rule: {rule}", highlight=False)
    if chosen.options.ending == "continue":
        save_adapter(model, directory)
    processes().wait_for_everyone()  # until the first has written scores and plan
    return allocation
