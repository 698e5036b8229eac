"""What several processes do together: gather, add up, and raise an error of one of them in all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from lorank.errors import LorankError, ScoresError, one_line

T = TypeVar("T")


def process_count() -> int:
    """Number of processes that were joined: by accelerate, a Trainer, or `torch.distributed.init_process_group`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value)
    return found


def of_the_first(value: T) -> T:
    """The value of the first process, in all."""
    if process_count() == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def added_up(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over processes by name, float64 on the CPU, in one collective; zero where a process does not have a name.

    Args:
        tensors: of any dtype, on any device; one name has the same shape in all processes that have it.

    """
    if process_count() == 1:
        return {name: tensor.detach().double().cpu() for name, tensor in tensors.items()}
    shapes: dict[str, torch.Size] = {}
    for own in gathered({name: tensor.shape for name, tensor in tensors.items()}):
        shapes |= {name: shape for name, shape in own.items() if name not in shapes}
    if not shapes:
        return {}
    on_cpu = "cpu:" in distributed.get_backend_config()
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    parts = [
        tensors[name].detach().to(device, torch.float64).flatten()
        if name in tensors
        else torch.zeros(shape.numel(), dtype=torch.float64, device=device)
        for name, shape in shapes.items()
    ]
    flat = torch.cat(parts)
    distributed.all_reduce(flat)
    sums = flat.cpu().split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), sums, strict=True)}


@contextmanager
def raised_in_all() -> Iterator[None]:
    """An error inside ends all processes with an error, so that none waits for one that has failed.

    Nothing inside may wait for other processes, unless all of them come to it.
    """
    if process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    told = None
    if error is not None:
        kind = type(error) if isinstance(error, LorankError) else ScoresError
        text = one_line(error) if isinstance(error, LorankError) else f"{type(error).__name__}: {one_line(error)}"
        told = kind, text
    all_told = gathered(told)
    if error is not None:
        raise error
    for number, other in enumerate(all_told):
        if other is not None:
            raise other[0](f"process {number} of {len(all_told)} failed: {other[1]}")
