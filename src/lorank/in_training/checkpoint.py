"""What RankAllocation writes: its state into a checkpoint, plan, scores and heat map at the end."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from lorank.adapter.adapted_part import adapted_part
from lorank.adapter.convert import UNFINISHED, trained_adapter
from lorank.artefact import checksum, write_atomically
from lorank.errors import TrainingError
from lorank.module_names import is_adapter_tensor
from lorank.plan import RankPlan
from lorank.report.rank_map import draw_rank_map, plan_title
from lorank.scores import ImportanceScores

STATE = "rank_allocation.safetensors"
VERSION = "3"


def write_state(state: Mapping[str, Any], args: TrainingArguments, step: int) -> None:
    """Complete a checkpoint: smoothed tensors, scores and unit numbers in a safetensors file beside Trainer's own.

    Raises:
        TrainingError: scores that are not finite; nothing is written.

    """
    checkpoint = Path(args.output_dir) / f"checkpoint-{step}"
    tensors, values = state["tensors"], state["values"]
    bad = [key for key, t in tensors.items() if key.startswith("smoothed/") and not bool(torch.isfinite(t).all())]
    if bad:
        since = int(tensors["first_bad"])
        first = f": the loss or a gradient is not since step {since}" if since else ""
        raise TrainingError(
            f"the scores are not finite at step {step}{first}; checkpoints in {args.output_dir} from before it are whole. Lower "
            "the learning rate, or train in fp32"
        )
    stamp = {"format": "lorank.rank_allocation", "version": VERSION, "belongs_to": checksum(values)}
    write_atomically(checkpoint / STATE, lambda temporary: save_file(tensors, temporary, stamp))


def holds_state(values: Mapping[str, Any] | None) -> bool:
    """Whether a trainer state was written while an allocation was under way."""
    own = values.get("attributes") if isinstance(values, Mapping) else None
    return isinstance(own, Mapping) and isinstance(own.get("saved"), Mapping)


def read_state(values: Mapping[str, Any] | None, args: TrainingArguments, step: int) -> dict[str, Mapping[str, Any]]:
    """Tensors and small values of the checkpoint that the Trainer has resumed from.

    Args:
        values: what RankAllocation had put into the trainer state.
        args: of the Trainer; its checkpoint is `args.resume_from_checkpoint`, or that of this step in `args.output_dir`.
        step: optimizer steps done at the checkpoint.

    Raises:
        TrainingError: the checkpoint was written without RankAllocation, or its file is missing, damaged or another's.

    """
    if values is None or not holds_state(values):
        raise TrainingError(
            f"the checkpoint at step {step} was written without RankAllocation, so its ranks and scores are not in it; "
            "start anew, or resume without RankAllocation"
        )
    small = values["attributes"]["saved"]
    places = [Path(args.output_dir) / f"checkpoint-{step}"]
    if isinstance(args.resume_from_checkpoint, str):
        places.insert(0, Path(args.resume_from_checkpoint))
    path = next((place / STATE for place in places if (place / STATE).is_file()), None)
    if path is None:
        raise TrainingError(
            f"no {STATE} in {' or '.join(map(str, places))}: the process was stopped while it wrote this checkpoint, or the "
            "checkpoint lies elsewhere; resume from an earlier one, or name its folder as resume_from_checkpoint in "
            "TrainingArguments too"
        )
    try:
        with safe_open(path, framework="pt") as file:
            stamp = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path}: damaged ({error}); resume from an earlier checkpoint") from None
    if stamp.get("version") != VERSION:
        raise TrainingError(
            f"{path} was written by another version of lorank (format {stamp.get('version')}, this one reads {VERSION}); finish "
            "this training with that version, or start anew"
        )
    if stamp.get("belongs_to") != checksum(small):
        raise TrainingError(f"{path} belongs to another checkpoint than the trainer state; resume from an earlier one")
    return {"tensors": tensors, "values": small}


def read_triplets(trainer: Any) -> None:
    """Have the Trainer read checkpoints of triplets also where its model is no PeftModel but has an adapter inside of it.

    Such a model (a SentenceTransformer) is read by making a new one of the checkpoint, which PEFT refuses while the adapter is
    triplets.
    """
    load = trainer._load_from_checkpoint

    @functools.wraps(load)
    def read(folder: str, *more: Any) -> None:
        _check_same_sharding(Path(folder), sharded=trainer.is_fsdp_enabled)
        model, config = trainer.model, Path(folder, "adapter_config.json")
        if isinstance(model, PeftModel) or not config.is_file() or UNFINISHED not in config.read_text(encoding="utf-8"):
            return load(folder, *more)
        beside = [name for name, p in model.named_parameters() if p.requires_grad and not is_adapter_tensor(name)]
        if beside:
            raise TrainingError(
                f"{beside[0]} trains beside the adapter, and while the adapter is triplets a {type(model).__name__} is not read "
                "back with it; start anew, with that parameter frozen if you need to resume"
            )
        part: Any = adapted_part(model)
        set_peft_model_state_dict(part, load_file(Path(folder, SAFETENSORS_WEIGHTS_NAME)), trained_adapter(model))

    trainer._load_from_checkpoint = read


def _check_same_sharding(checkpoint: Path, *, sharded: bool) -> None:
    """Whether a checkpoint can be read: of FSDP, transformers writes model and optimizer into files of their own.

    Raises:
        TrainingError: written with FSDP and resumed without it, or the other way round.

    """
    written = (checkpoint / "pytorch_model_fsdp.bin").is_file()
    if written != sharded:
        one, other = ("with", "without") if written else ("without", "with")
        raise TrainingError(
            f"{checkpoint} was written {one} FSDP, and is resumed {other} it, which transformers cannot read: resume {one} "
            "FSDP (by any number of processes), or start anew"
        )


def write_results(scores: ImportanceScores, plan: RankPlan, directory: Path) -> None:
    """Write `scores.safetensors`, `plan.json` and `ranks.png`."""
    scores.save(directory / "scores.safetensors")
    plan.save(directory / "plan.json")
    draw_rank_map(plan, directory / "ranks.png", plan_title(plan), scores)
