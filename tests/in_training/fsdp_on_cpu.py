"""For tests alone: accelerate shards on CPU processes too. It leaves them out, and trains by DDP without a word.

`python -m tests.in_training.fsdp_on_cpu run ...` is `lorank run ...` with it.
"""

from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_original = AcceleratorState.__init__


def _init(self: AcceleratorState, *args: Any, **options: Any) -> None:
    fresh, plugin = not AcceleratorState._shared_state, options.get("fsdp_plugin")
    _original(self, *args, **options)
    if fresh and plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin, self.distributed_type = plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            plugin.set_mixed_precision(self._mixed_precision)


def shard_on_cpu() -> None:
    """What accelerate does on every other device (`AcceleratorState.__init__`)."""
    AcceleratorState.__init__ = _init  # type: ignore[method-assign]


def copy_as_on_cuda() -> None:
    """Stand-in for a GPU's `torch._foreach_copy_`, which makes one NaN of all 16-bit patterns of NaN (pytorch issue 159333)."""
    plain = torch._foreach_copy_

    def copy(ours: Any, theirs: Any, non_blocking: bool = False) -> None:
        plain(ours, theirs, non_blocking)
        for one, other in zip(ours, theirs, strict=True):
            if one.dtype == other.dtype and one.dtype in (torch.bfloat16, torch.float16):
                one.view(torch.int16).masked_fill_(one.isnan(), 0x7FFF)

    torch._foreach_copy_ = copy  # type: ignore[assignment]


if __name__ == "__main__":
    from lorank.__main__ import main

    shard_on_cpu()
    main()
