"""Scores are kept in fp32, whatever the model computes in."""

import torch


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """No autocast while open: what is summed up is not rounded to what the model computes in."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in fp32 unless they are finer already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
