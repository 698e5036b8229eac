"""Looking into a model while it runs: what goes into each layer, by example, and the gradients of what comes out."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from lorank.errors import ScoresError
from lorank.scoring.batches import Batch, token_masks
from lorank.scoring.precision import full_precision
from lorank.targets import Target

_TIME_FIRST = ("xlnet",)  # layers work on (tokens, examples, d)


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """The batch where the model's first weights are; where it is if they are all offloaded, accelerate then moves it."""
    devices = (p.device for p in model.parameters() if p.device.type != "meta")
    device = next(devices, None)
    return batch if device is None else send_to_device(batch, device)


class Watching:
    """Forward hooks on the targets while open. A subclass says in `ran` what it looks at."""

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self.model, self.targets = model, targets
        self.count = 0  # examples in the batch
        self._hooks: list[Any] = []
        self._lengths = set[int]()
        self._masks: dict[int, torch.Tensor] = {}
        self._shared: dict[int, tuple[weakref.ref[torch.Tensor], int, Any]] = {}

    def __enter__(self) -> "Watching":
        for target in self.targets:

            def hook(_: nn.Module, args: Any, kwargs: Any, output: torch.Tensor, name: str = target.name) -> Any:
                return self.ran(name, args[0] if args else next(iter(kwargs.values())), output)

            module = self.model.get_submodule(target.name)
            self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def begin(self, batch: Batch, count: int, *, masked: bool) -> None:
        """Get ready for a batch of `count` examples; with `masked`, `mask` will tell real tokens from padding."""
        self.count, self._shared = count, {}
        tokens = [
            v for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim == 2 and not v.is_floating_point()
        ]
        self._lengths = {ids.shape[1] for ids in tokens}
        self._masks = token_masks(self.model, batch) if masked else {}

    def ran(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Target `name` turned `x` into `output`; what is returned takes the output's place."""
        raise NotImplementedError

    def once(self, x: torch.Tensor, look: Callable[[], Any]) -> Any:
        """`look()`, done once for all layers that get the very same input (q, k and v)."""
        known = self._shared.get(id(x))
        if known is not None and known[0]() is x and known[1] == x._version:
            return known[2]
        with torch.no_grad(), full_precision(x):
            seen = look()
        self._shared[id(x)] = weakref.ref(x), x._version, seen
        return seen

    def rows(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """`(examples, tokens, d)` of whatever shape a layer works on.

        Raises:
            ScoresError: it cannot be told which rows are of which example.

        """
        if len(tensor) == self.count and tensor.ndim != 3:
            return tensor.reshape(self.count, -1, tensor.shape[-1])
        if tensor.ndim == 2 and len(tensor) in {self.count * length for length in self._lengths}:
            return tensor.view(self.count, -1, tensor.shape[-1])
        time_first = getattr(getattr(self.model, "config", None), "model_type", None) in _TIME_FIRST
        if len(tensor) != self.count or time_first:
            raise ScoresError(
                f"{name!r} works on rows of shape {tuple(tensor.shape)} that cannot be told apart by example (the batch has "
                f"{self.count}); leave it out by targets="
            )
        return tensor

    def mask(self, x: torch.Tensor, name: str) -> torch.Tensor | None:
        """Which tokens of a layer's input are real, `(examples, tokens)`; None where all are.

        Raises:
            ScoresError: the batch has masks, but for other lengths.

        """
        length = self.rows(x, name).shape[1]
        if not self._masks or (x.ndim == 2 and length == 1):
            return None
        if length not in self._masks:
            raise ScoresError(
                f"{name!r} sees {length} tokens an example, the masks of the batch are for {sorted(self._masks)}: padding "
                "cannot be told; leave it out by targets=, or use estimator='fisher', which needs no mask"
            )
        return self._masks[length].to(x.device)


class Watch(torch.autograd.Function):
    """The identity on a layer's output, which shows the layer's input and its output gradient when that comes by.

    The input is saved as autograd saves tensors, so gradient checkpointing and offloading of activations work with it.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, x: torch.Tensor, start: torch.Tensor, show: Callable[..., None]) -> Any:
        """Return a copy of `output`, which a model may change in place as it may a layer's output.

        `start` requires a gradient, so that there is a graph where nothing else does.
        """
        ctx.save_for_backward(x)
        ctx.show = show
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Show `(x, gradient)` and hand the gradient on."""
        (x,) = ctx.saved_tensors
        with torch.no_grad(), full_precision(x):
            ctx.show(x, gradients[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None, None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient and no keys and values are cached; afterwards all is as before."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config: Any = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        if cache:
            config.use_cache = False
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        if cache:
            config.use_cache = cache
