"""Forward passes that are made for what goes into layers: they end where the output layer of a language model begins."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from lorank.scoring.batches import Batch, SummedLoss, call, summed_loss
from lorank.scoring.split.several_processes import is_sharded
from lorank.targets import Target


class _Reached(Exception):
    """All targets have run; what is left of the pass nobody looks at."""


class ForwardPasses:
    """Passes batches through a model where its outputs and its loss do not matter.

    The product with a large vocabulary and the loss of it can be a third of a pass. Whether any target is behind the output
    layer, or is the output layer, is not known from the outside, so passes are whole until one has shown that every target
    runs before it, and none behind.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self.model, self.targets = model, targets
        self._head = _output_layer(model)
        self._waiting = {target.name for target in targets}
        self._in_head = False

    @property
    def short(self) -> bool:
        """Whether passes end at the output layer from now on."""
        return self._head is not None and not self._waiting

    def run(self, batch: Batch, loss: SummedLoss) -> None:
        """Pass a batch; by a `loss` of the user's, who knows how the model is called, always whole."""
        if loss is not summed_loss:
            loss(self.model, batch)
            return
        if self._head is None:
            call(self.model, batch)
            return
        before, seen = self.short, set[str]()
        with ExitStack() as hooks:
            hooks.callback(self._head.register_forward_pre_hook(self._at_head).remove)
            if not before:
                for target in self.targets:

                    def hook(module: nn.Module, args: Any, name: str = target.name) -> None:
                        if self._in_head:
                            self._head = None
                        seen.add(name)

                    module = self.model.get_submodule(target.name)
                    hooks.callback(module.register_forward_pre_hook(hook).remove)
            self._in_head = False
            try:
                call(self.model, batch)
            except _Reached:
                return
        if self._in_head:
            self._waiting -= seen

    def _at_head(self, module: nn.Module, args: Any) -> None:
        if self.short:
            raise _Reached
        self._in_head = True


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The output layer of a language model; None where there is none, or where leaving it early would leave weights behind.

    accelerate puts the weights of an offloaded module away after its forward pass, and FSDP those that it gathered, which those
    around the output layer would not come to.
    """
    if is_sharded(model):
        return None
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if not isinstance(head, nn.Module):
        return None
    hooked = [module for module in model.modules() if module is not head and hasattr(module, "_hf_hook")]
    hooks = [module._hf_hook for module in hooked if head in module.modules()]
    offloads = any(getattr(one, "offload", False) for hook in hooks for one in getattr(hook, "hooks", [hook]))
    return None if offloads else head
