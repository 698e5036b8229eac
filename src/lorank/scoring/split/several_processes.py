"""A model that several processes score together: whole in each, or sharded by FSDP2; and one result for all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lorank.errors import ScoresError, TargetError, shown
from lorank.models.quantization import NOT_IN_8_BITS, changed_by_gathering, layers_in_8_bits
from lorank.scoring.split.collectives import gathered, of_the_first, process_count, raised_in_all

_OR_BEFORE = (
    "score before the model is prepared, or in one process; then get_peft_model with the plan, and prepare that"
)


def is_sharded(model: nn.Module) -> bool:
    """Whether every process holds a part of the weights (FSDP2): each pass then takes all processes at once.

    Raises:
        TargetError: it is split in a way in which layers cannot be looked at: FSDP's first version, ZeRO-3, tensor parallelism.

    """
    if process_count() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise TargetError(f"the model is sharded by the first version of FSDP; choose fsdp_version: 2, or {_OR_BEFORE}")
    parameters: list[Any] = list(model.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        raise TargetError(f"the model is sharded by DeepSpeed's ZeRO-3, where layers cannot be looked at; {_OR_BEFORE}")
    meshes = [parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)]
    wrapped = any(isinstance(module, FSDPModule) for module in model.modules())
    if meshes and (not wrapped or any("tp" in (mesh.mesh_dim_names or ()) for mesh in meshes)):
        raise TargetError(
            f"layers of the model are split over processes (tensor parallelism), so none sees whole inputs; {_OR_BEFORE}"
        )
    return wrapped or bool(meshes)  # weights may be gathered, and stay so after a pass


def in_all_processes(model: nn.Module, asked: Mapping[str, Any], score: Callable[[], Any]) -> Any:
    """What `score()` returns in the first process, in all of them; an error in one is raised in all.

    Args:
        model: to be scored.
        asked: method, options and targets, which have to be the same in all processes.
        score: scores.

    Raises:
        ScoresError: the processes do not hold the same weights, or ask for different scores.
        TargetError: see `is_sharded`; or sharding changes the weights of a base in 4 bits.

    """
    if process_count() == 1:
        return score()
    for number, other in enumerate(gathered(dict(asked))):
        if wrong := next((key for key, value in asked.items() if other.get(key) != value), None):
            raise ScoresError(
                f"processes ask for different scores: {wrong} is {shown(asked[wrong], 200)} here and "
                f"{shown(other.get(wrong), 200)} in process {number}; call lorank.score with the same arguments in all of them"
            )
    if is_sharded(model):
        _check_shards(model)
    else:
        _check_same_weights(model)
    with raised_in_all():
        found = score()
    return of_the_first(found)  # kernels may differ in the last bit from process to process; what is decided must not


def _check_shards(model: nn.Module) -> None:
    """Refuse shards of quantised weights of which a process cannot make the weights again."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(layer.weight, DTensor) for layer in layers_in_8_bits(model)):
        raise TargetError(f"{NOT_IN_8_BITS}; load the base in 4 bits, or {_OR_BEFORE}")
    if (wrong := changed_by_gathering(model)) is not None:
        raise TargetError(f"{wrong}; or {_OR_BEFORE}")


def _check_same_weights(model: nn.Module) -> None:
    """Compare the first numbers of every weight: heads that are new are drawn by each process for itself."""
    with torch.no_grad():
        held = {
            name: parameter.detach().reshape(-1)[:4].double().tolist()
            for name, parameter in model.named_parameters()
            if parameter.device.type != "meta"
        }
    first = of_the_first(held)
    other = next((name for name in {**first, **held} if not _equal(first.get(name), held.get(name))), None)
    if (name := next((name for name in gathered(other) if name is not None), None)) is not None:
        raise ScoresError(
            f"the processes hold different models: {name!r} differs; call transformers.set_seed in all of them before the model "
            "is made, or load it with its head"
        )


def _equal(one: list[float] | None, other: list[float] | None) -> bool:
    return one is not None and other is not None and (one == other or bool(torch.tensor(one).isnan().any()))
