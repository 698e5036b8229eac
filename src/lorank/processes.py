"""One process or many: `accelerate launch` and `torchrun` start several, and files are written by the first."""

import torch
from accelerate import PartialState


def only_cpu() -> bool:
    """Whether there is no accelerator; accelerate and transformers must be told, or several CPU processes do not meet."""
    return not torch.accelerator.is_available()


def processes() -> PartialState:
    """The processes of this run."""
    return PartialState(cpu=only_cpu())
