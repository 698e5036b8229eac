"""For tests alone: accelerate shards on CPU processes too. It leaves them out, and trains by DDP without a word.

`python -m tests.in_training.fsdp_on_cpu run ...` is `lorank run ...` with it.
"""

from typing import Any

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


if __name__ == "__main__":
    from lorank.__main__ import main

    shard_on_cpu()
    main()
