"""A stage that allocates while it trains (IGU-LoRA, AdaLoRA): RankAllocation in the Trainer of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import get_peft_model
from rich.console import Console

from lorank.engine.cut_rules import schedule_of
from lorank.engine.options import PruningOptions
from lorank.in_training.rank_allocation import RankAllocation
from lorank.methods import METHODS
from lorank.processes import processes
from lorank.recipe.recipe import Recipe, choose_options
from lorank.training.prepared import Prepared
from lorank.training.stage import initial_config, train_stage
from lorank.training.stage2 import save_adapter
from lorank.training.steps import stage_steps, steps_per_epoch


def pruning_of(recipe: Recipe, method: str) -> tuple[str, PruningOptions, dict[str, Any]]:
    """Preset, options and limits: the recipe's for its own method, the default preset's for a baseline."""
    if method == recipe.method:
        assert recipe.preset is not None, "make_recipe names the preset"
        return recipe.preset, recipe.pruning, recipe.allocation.model_dump()
    return choose_options(method, None, {})


def check_schedule(recipe: Recipe, method: str, examples: int) -> None:
    """Whether the stage is long enough to prune in, before anything is trained.

    Raises:
        AllocationError: it is not.

    """
    if METHODS[method].trained == "pruned triplets":
        epoch = steps_per_epoch(recipe.stage1, examples)
        schedule_of(pruning_of(recipe, method)[1], stage_steps(recipe.stage1, examples), epoch)


def allocate_in_training(
    recipe: Recipe,
    method: str,
    prepared: Prepared,
    directory: Path,
    console: Console,
    provenance: Mapping[str, Any],
) -> None:
    """Train with allocation, or continue; write scores, plan and heat map, and with `ending: continue` the adapter.

    Raises:
        TrainingError: a loss that is not finite, or nothing to allocate by.

    """
    section, settings, task = recipe.stage1, prepared.settings, prepared.load_model()
    config = initial_config(
        prepared.targets, task, rank=section.initial_rank, scale=settings.scale, dropout=settings.lora_dropout
    )
    model = get_peft_model(task.model, config)
    preset, options, limits = pruning_of(recipe, method)
    allocation = RankAllocation(
        method,
        recipe.budget,
        preset=preset,
        output_dir=directory,
        provenance=provenance,
        **options.model_dump(),
        **limits,
    )
    train_stage(
        name=method if options.ending == "continue" else f"stage 1, {method}",
        prepared=prepared,
        section=section,
        directory=directory / "stage1",
        model=model,
        rows=prepared.tokenize(prepared.data.train),
        console=console,
        callbacks=[allocation],
    )
    if options.ending == "continue":
        save_adapter(model, directory)
    processes().wait_for_everyone()  # until the first has written scores and plan
