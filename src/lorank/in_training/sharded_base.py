"""FSDP2: the base model is sharded, whatever trains stays whole on every process, and lorank averages its gradients.

`fully_shard` leaves the parameters alone that it is told to ignore. The adapter (P, λ, Q), heads and `modules_to_save` are
such parameters, so scores, cuts, folding, saving and resuming are those of one process. What `fully_shard` does not do for
them is done here: they begin alike, and their gradients are averaged.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, broadcast
from accelerate.utils.fsdp_utils import get_parameters_from_modules
from peft import PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_leaves

from lorank.errors import LorankWarning, TrainingError
from lorank.models.quantization import NOT_IN_8_BITS, changed_by_gathering, hold_for_sharding, layers_in_8_bits
from lorank.processes import asks_for_fsdp, processes

_OTHERWISE = "Or use DDP, or allocate first and train the plan with it"


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What trains: the adapter, and heads or whatever else is not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def fsdp_plugin() -> Any:
    """What accelerate was told of FSDP, where it shards; else None."""
    state = AcceleratorState._shared_state  # AcceleratorState() would make one where there is none yet
    return state.get("fsdp_plugin") if state.get("distributed_type") == DistributedType.FSDP else None


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose adapter was sharded with the base.

    Raises:
        TrainingError: says how to shard the base alone.

    """
    if any(isinstance(parameter, DTensor) for parameter in trained_parameters(model)):
        raise TrainingError(
            "parameters that train are sharded, and ranks can be cut only where the adapter is whole: give fully_shard what it "
            "is to leave alone, ignored_params={p for p in model.parameters() if p.requires_grad}, for every module, and do so "
            "when AllocationLoop is made. With accelerate make Accelerator, then AllocationLoop, then prepare"
        )


def leave_whole(model: nn.Module) -> None:
    """Have a later `prepare` of accelerate shard all of `model` but what trains. Where accelerate does not shard: nothing.

    Also what no sharding gives back as it was is left whole, see `hold_for_sharding`.

    Raises:
        TrainingError: FSDP in a form that cannot work, or a base in 8 bits.

    """
    plugin, sharded = fsdp_plugin(), _is_sharded(model)
    if (plugin or sharded) and layers_in_8_bits(model):
        raise TrainingError(f"{NOT_IN_8_BITS}; load the base in 4 bits. {_OTHERWISE}")
    if plugin is None or sharded:
        return
    _check_plugin(plugin)
    given = get_parameters_from_modules(plugin.ignored_modules, model, processes().device)
    whole = dict.fromkeys(
        [*trained_parameters(model), *given, *hold_for_sharding(model, plugin), *_tied_originals(model)]
    )
    for parameter in whole:  # `fully_shard` moves to the device what it shards, and nothing else
        parameter.data = parameter.data.to(processes().device)
    plugin.ignored_modules = [nn.ParameterList(whole)]


def _tied_originals(model: nn.Module) -> list[nn.Parameter]:
    """Weights of modules that train a copy, where another module has them too: accelerate would have torch shard them twice."""
    copied = [module.original_module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [parameter for module in copied for parameter in module.parameters() if counts[id(parameter)] > 1]


def average_in_training(model: nn.Module) -> None:
    """For a training without allocation: its adapter is whole too, so that it is saved as everywhere else.

    Raises:
        TrainingError: every weight trains, or FSDP in a form that cannot work.

    """
    if fsdp_plugin() is None:
        warn_of_ddp()
        return
    if not isinstance(model, PeftModel):
        raise TrainingError(
            "full fine-tuning under FSDP is not supported: every weight trains, and none can stay whole; run it without FSDP, or "
            "leave the baseline out"
        )
    leave_whole(model)
    AveragedGradients(model)


def warn_of_ddp(*, asked: bool = False) -> None:
    """Say it where FSDP was asked for, by `asked` or by `accelerate launch`, and accelerate does something else without a word.

    Warns:
        LorankWarning: the base is not sharded.

    """
    state = processes()
    if (asked or asks_for_fsdp()) and fsdp_plugin() is None and state.num_processes > 1 and state.is_main_process:
        warnings.warn(
            "FSDP was asked for, and accelerate does not shard here (it never does on a CPU): every process holds the whole "
            "model, and this is DDP",
            LorankWarning,
            stacklevel=3,
        )


class AveragedGradients:
    """Averages, at the end of a backward pass, the gradients of what is whole on every process, in one reduction.

    The end of a pass is known from the tensors that the model has returned, so a process in whose batch a module had no part
    takes part like all others. The hook stays on the model: what is left after the last cut may be trained on by anybody.
    With gradient accumulation by accelerate only the pass that synchronises does it.

    Attributes:
        paused: passes that are not training's are under way.

    """

    def __init__(self, model: nn.Module) -> None:
        """Give every process the first one's values, as DDP does, and listen to `model`, which may be sharded later."""
        _begin_alike(trained_parameters(model))
        self.paused = False
        self._sharded: bool | None = None
        self._queued = self._averaged = self._compared = False
        self._hook = model.register_forward_hook(self._called)
        self._first = model.register_forward_pre_hook(self._begin)

    def check(self, model: nn.Module) -> None:
        """Before the optimizer's step: were gradients averaged since the last one? Before the first: has the base its own bits?

        Raises:
            TrainingError: they were not, so that the processes would train different adapters; or the adapter is trained on
                other weights than the base has.

        """
        if not self._compared:
            self._compared, self._sharded = True, _is_sharded(model)
            refuse_sharded(model)
            if self._sharded:
                _refuse_changed(model, begun=False)
        if self._sharded and not self._averaged:
            raise TrainingError(
                "the base is sharded (FSDP), and gradients of the adapter were not averaged over processes in this step: compute "
                "the loss by calling the model itself, not a part of it"
            )
        self._averaged = False

    def _begin(self, model: nn.Module, _: Any) -> None:
        """The first pass of a sharded model: bits that have changed may have bitsandbytes fail on them before any step."""
        if _is_sharded(model):
            self._first.remove()
            _refuse_changed(model, begun=True)

    def _called(self, model: nn.Module, _: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self._sharded is None:
            refuse_sharded(model)
        self._queued = False  # of a pass that ended with an error
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(functools.partial(self._queue, model))

    def _queue(self, model: nn.Module, _: torch.Tensor) -> None:
        if self._sharded is None:  # known when training begins: whoever tries the model out may shard it after that
            self._sharded = _is_sharded(model)
        if not self._sharded:
            self._hook.remove()
            self._first.remove()
        elif not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(functools.partial(self._average, model))

    def _average(self, model: nn.Module) -> None:
        self._queued = False
        if not self.paused and GradientState().sync_gradients:
            average_gradients(trained_parameters(model))
            self._averaged = True


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Mean over processes of `.grad`, in one all-reduce; a gradient that is missing counts as 0.

    What has no gradient on any process has none afterwards: an optimizer leaves such parameters alone.
    """
    first = parameters[0]
    dtype = functools.reduce(torch.promote_types, (parameter.dtype for parameter in parameters))
    there = torch.tensor([p.grad is not None for p in parameters], device=first.device).to(dtype)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([there, *(gradient.flatten().to(dtype) for gradient in gradients)])
    flat /= torch.distributed.get_world_size()  # before the sum, as DDP does: scaled gradients of fp16 are large
    torch.distributed.all_reduce(flat)
    averages = flat[len(parameters) :].split([p.numel() for p in parameters])
    for k, (parameter, average) in enumerate(zip(parameters, averages, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(average.view_as(parameter))
        elif bool(flat[k]):
            parameter.grad = average.view_as(parameter).to(parameter.dtype, copy=True)


@torch.no_grad()
def _begin_alike(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the values of the first one, as DDP does."""
    for dtype in {parameter.dtype for parameter in parameters}:
        own = [parameter for parameter in parameters if parameter.dtype == dtype]
        flat = broadcast(torch.cat([parameter.flatten() for parameter in own]).to(processes().device))
        for parameter, values in zip(own, flat.split([p.numel() for p in own]), strict=True):
            parameter.copy_(values.view_as(parameter))


def _is_sharded(model: nn.Module) -> bool:
    """Whether parameters lie in shards, each process with its own; also while they are gathered, as they may stay after a pass.

    Raises:
        TrainingError: not over all processes, or along a layer's width (tensor parallelism).

    """
    meshes = {(p.device_mesh, p.placements) for p in model.parameters() if isinstance(p, DTensor)}
    for mesh, placements in meshes:
        if mesh.size() != processes().num_processes or sum(isinstance(each, Shard) for each in placements) > 1:
            raise TrainingError(
                f"the base is sharded over a mesh of {mesh.size()} of {processes().num_processes} processes, {placements}; "
                "lorank averages gradients over all processes, which is for FSDP2 and HSDP without tensor parallelism. "
                f"{_OTHERWISE}"
            )
    return bool(meshes) or any(isinstance(module, FSDPModule) for module in model.modules())


def _refuse_changed(model: nn.Module, *, begun: bool) -> None:
    if (wrong := changed_by_gathering(model, begun=begun)) is not None:
        raise TrainingError(f"{wrong}. With accelerate make Accelerator, then AllocationLoop, then prepare")


def _check_plugin(plugin: Any) -> None:
    """Refuse what cannot work, or would save nothing, before a model is sharded.

    Raises:
        TrainingError: names the option and what to set.

    """
    if plugin.fsdp_version != 2:
        raise TrainingError(
            "FSDP version 1 puts adapter and base into one flat tensor, in which no rank can be cut; use version 2 "
            f"(fsdp_version: 2, or fsdp_config={{'version': 2}}). {_OTHERWISE}"
        )
    if plugin.cpu_ram_efficient_loading:
        raise TrainingError(
            "FSDP with cpu_ram_efficient_loading makes all parameters anew when it shards, the adapter too; set "
            f"fsdp_cpu_ram_efficient_loading: false (in TrainingArguments cpu_ram_efficient_loading). {_OTHERWISE}"
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise TrainingError(
            "FSDP with state_dict_type SHARDED_STATE_DICT saves no adapter; set fsdp_state_dict_type: FULL_STATE_DICT (in "
            "TrainingArguments state_dict_type; older transformers ignore it there, and take FSDP_STATE_DICT_TYPE of the "
            f"environment). {_OTHERWISE}"
        )
