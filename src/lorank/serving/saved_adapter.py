"""Whether the file of a trained adapter holds what its plan says: an audit after saving, above all of a sharded training."""

from pathlib import Path

from lorank.errors import AdapterError
from lorank.plan import RankPlan
from lorank.serving.adapter_files import CONFIG, WEIGHTS, AdapterFiles


def check_saved_adapter(folder: str | Path, plan: RankPlan) -> int:
    """Check that a saved adapter is the plan's, whole and trained; reads the two files, and no model.

    Every module with a rank `r_m > 0` in the plan has `lora_A` and `lora_B`, together `r_m · unit_cost_m` parameters, and no
    other module has any; `adapter_config.json` gives every module the rank of its tensors; no tensor is a shard, empty or not
    finite; no `lora_B` is zero in every entry, as it is before training. Call it on one process, after all have saved.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        plan: that was trained.

    Returns:
        The adapter parameters in the file, `plan.spent`; modules that were trained whole (heads) are not counted.

    Raises:
        AdapterError: the file is missing, damaged or no plain LoRA, or one of the above does not hold; names the first module.

    """
    files = AdapterFiles.read(folder)
    wanted = {name: rank * plan.unit_costs[name] for name, rank in plan.ranks.items() if rank > 0}
    held = {name: pair.a.numel() + pair.b.numel() for name, pair in files.pairs.items()}
    if wrong := [name for name in {**wanted, **held} if wanted.get(name, 0) != held.get(name, 0)]:
        raise AdapterError(
            f"{files.folder / WEIGHTS} holds {held.get(wrong[0], 0):,} parameters of {wrong[0]!r}, the plan says "
            f"{wanted.get(wrong[0], 0):,} ({_several(wrong)}): the adapter of another plan, or shards of one that was trained on "
            f"several devices; take {WEIGHTS} and {CONFIG} from one training, and save with all processes (trainer.save_model)"
        )
    if idle := [name for name, pair in files.pairs.items() if not pair.b.any()]:
        raise AdapterError(
            f"{files.folder / WEIGHTS}: lora_B of {idle[0]!r} is zero in every entry ({_several(idle)}), as before training: not "
            "trained, or not gathered before it was saved; look whether the loss reaches the module, and save with all processes "
            "(trainer.save_model)"
        )
    return files.parameters


def _several(names: list[str]) -> str:
    return "this module alone" if len(names) == 1 else f"and {len(names) - 1:,} more modules"
