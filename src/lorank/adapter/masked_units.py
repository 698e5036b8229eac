"""Units that the last cut has taken, where tensors keep their sizes until training ends (DDP has them in buckets)."""

import functools
from collections.abc import Mapping

import torch

from lorank.adapter.triplet import TripletAdapter


class MaskedUnits:
    """Trains the rest as if these units were gone: λ stays 0, and nothing of them counts in the norm that is clipped.

    With λ at 0 the loss has no gradient by P and Q of a unit, but it has one by λ. That one is set to 0 as it is made, before
    gradients are averaged over processes. The regulariser leaves these units out by `kept`.

    Attributes:
        masks: of each module, 1 where a unit is kept, `(r_m,)` in λ's dtype.
        kept: of each module, the positions of the kept units.

    """

    def __init__(self, adapter: TripletAdapter, masks: Mapping[str, torch.Tensor]) -> None:
        """Begin to hold; `masks[name]` is boolean, `(r_m,)`."""
        self.adapter = adapter
        self.masks = [masks[n].to(v.device, v.dtype) for n, v in zip(adapter.names, adapter.lambdas, strict=True)]
        self.kept = [mask.nonzero()[:, 0] for mask in self.masks]
        self._hooks = [
            values.register_hook(functools.partial(torch.mul, mask))
            for values, mask in zip(adapter.lambdas, self.masks, strict=True)
        ]

    @torch.no_grad()
    def hold(self) -> None:
        """After an optimizer's step, which may have moved λ by what it remembers: back to 0."""
        torch._foreach_mul_(list(self.adapter.lambdas), self.masks)

    def release(self) -> None:
        """Hold no more; the units are cut away now."""
        for hook in self._hooks:
            hook.remove()
