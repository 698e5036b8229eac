"""One process or many: `accelerate launch` and `torchrun` start several, and files are written by the first."""

import os
import time

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


def leave_processes() -> None:
    """The end of a process that has worked with others and has succeeded; does nothing where it was alone.

    It waits for the others: torchrun ends all when one ends badly, and the first may still be writing. Then it leaves the group,
    as PyTorch wants it, and gives gloo's threads a moment to let go of tensors: a thread that asks for Python's lock while the
    interpreter ends would abort the process.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes().wait_for_everyone()
        torch.distributed.destroy_process_group()
        time.sleep(0.1)
