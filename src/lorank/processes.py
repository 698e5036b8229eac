"""One process or many: `accelerate launch` and `torchrun` start several, and files are written by the first."""

import os

import torch
from accelerate import PartialState


def only_cpu() -> bool:
    """Whether there is no accelerator; accelerate and transformers must be told, or several CPU processes do not meet."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """The processes of this run."""
    return PartialState(cpu=only_cpu())


def asks_for_fsdp() -> bool:
    """Whether `accelerate launch` was told to shard (`--use_fsdp`); on a CPU accelerate does not, and says nothing."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
