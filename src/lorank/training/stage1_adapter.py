"""I-LoRA without its second stage: what the plan keeps of stage 1's triplets, as the adapter (ablation of its Table 3)."""

from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import set_seed

from lorank.adapter.convert import fold_to_lora
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter, triplet_config
from lorank.models.loading import load_task_model
from lorank.plan import RankPlan
from lorank.recipe.recipe import Recipe
from lorank.scores import ImportanceScores
from lorank.targets import Target
from lorank.tasks.data import TaskData
from lorank.training.checkpoints import latest_checkpoint
from lorank.training.stage import initial_config
from lorank.training.stage2 import save_adapter


def keep_stage1(
    recipe: Recipe,
    data: TaskData,
    targets: tuple[Target, ...],
    plan: RankPlan,
    scores: ImportanceScores,
    directory: Path,
) -> None:
    """Save the trained triplets with the highest scores, as many of every module as the plan says, under `directory/adapter`.

    They are folded into a plain PEFT LoRA of the same function; nothing is trained on. Of equal scores the first is kept.

    Args:
        recipe: of the run.
        data: decides the head.
        targets: what stage 1 adapted.
        plan: ranks.
        scores: one for each triplet.
        directory: of the run; `stage1` in it holds the finished stage.

    """
    set_seed(recipe.seed)
    task = load_task_model(recipe, data.label_names)
    model = get_peft_model(task.model, triplet_config(initial_config(recipe, targets, task)))
    checkpoint = latest_checkpoint(directory / "stage1")
    assert checkpoint is not None, "a stage leaves a checkpoint when it ends"
    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
    adapter = TripletAdapter.of(model)
    kept = {}
    for name, values in scores.scores.items():
        best = np.argsort(-values, kind="stable")[: plan.ranks[name]]
        kept[name] = torch.from_numpy(np.sort(best))
    shrink(adapter, kept)
    fold_to_lora(model, adapter, recipe.scale)
    save_adapter(model, directory)
