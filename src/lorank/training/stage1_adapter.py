"""I-LoRA without its second stage: what the plan keeps of stage 1's triplets, as the adapter (ablation of its Table 3)."""

from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from lorank.adapter.convert import fold_to_lora
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter, triplet_config
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.training.checkpoints import latest_checkpoint
from lorank.training.prepared import Prepared
from lorank.training.stage import initial_config
from lorank.training.stage2 import save_adapter


def keep_stage1(
    prepared: Prepared,
    initial_rank: int,
    plan: RankPlan,
    scores: ImportanceScores,
    directory: Path,
) -> None:
    """Save the trained triplets with the highest scores, as many of every module as the plan says, under `directory/adapter`.

    They are folded into a plain PEFT LoRA of the same function; nothing is trained on. Of equal scores the first is kept.

    Args:
        prepared: the run's.
        initial_rank: of stage 1.
        plan: ranks.
        scores: one for each triplet.
        directory: of the run; `stage1` in it holds the finished stage.

    """
    settings, task = prepared.settings, prepared.load_model()
    config = initial_config(
        prepared.targets, task, rank=initial_rank, scale=settings.scale, dropout=settings.lora_dropout
    )
    model = get_peft_model(task.model, triplet_config(config))
    checkpoint = latest_checkpoint(directory / "stage1")
    assert checkpoint is not None, "a stage leaves a checkpoint when it ends"
    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
    adapter = TripletAdapter.of(model)
    kept = {}
    for name, values in scores.scores.items():
        best = np.argsort(-values, kind="stable")[: plan.ranks[name]]
        kept[name] = torch.from_numpy(np.sort(best))
    shrink(adapter, kept)
    fold_to_lora(model, adapter, settings.scale)
    save_adapter(model, directory)
