"""Forward hooks on layers: what goes into each, by example, and the gradients of what comes out."""

import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lorank.errors import LorankWarning, ScoresError
from lorank.module_names import has_part
from lorank.scoring.batches import Batch, on_device_of
from lorank.scoring.examples import in_rows, some_examples, without_padding
from lorank.scoring.masks import token_masks, with_distinct_lengths
from lorank.scoring.precision import full_precision
from lorank.scoring.split.numbered_batches import NumberedBatches
from lorank.targets import Target

_LOG = logging.getLogger(__name__)


class RowsUnknown(Exception):
    """In a batch of several examples it cannot be told which of a layer's rows, or which of its tokens, are of which."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name!r} {why}")


class SameSizes(Exception):
    """There are as many examples as tokens, so it cannot be told which dimension is which."""


class CannotScore(Exception):
    """Not even in a batch of one example can a layer be scored; says why."""


def _not_text(key: str, value: Any) -> bool:
    """Whether a model input is of images or sounds, whose tokens a mask of texts is not for."""
    if (
        not isinstance(value, torch.Tensor)
        or not value.is_floating_point()
        or key.endswith(("embeds", "mask", "labels"))
    ):
        return False
    return value.ndim > 2 or key == "input_values"


class LayerHooks:
    """Forward hooks on the targets while open. A subclass says in `after_layer` what it takes from a layer's call.

    Batches go through the model whole where every layer works on `(examples, ..., d)` or on all tokens of all examples in
    their order. Where one does not (relative positions that all examples share, routed experts, patches of all images,
    time before examples), this and all further batches go through it one example at a time, without padding: then all rows
    that a layer sees are of that example.

    Attributes:
        alone: why examples go through the model one at a time; None while batches go whole.
        left_out: target -> why it cannot be scored.

    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], *, masked: bool) -> None:
        """Take the model and its targets; with `masked`, `mask` will tell real tokens from padding."""
        self.model, self.targets, self.masked = model, targets, masked
        self.first = 0  # number of the batch's first example among those of all processes
        self.count = 0  # examples in the batch
        self.alone: str | None = None
        self._alone = False  # whether this batch is one example without padding
        self.left_out: dict[str, str] = {}
        self._open = ExitStack()
        self._lengths = set[int]()
        self._masks: dict[int, torch.Tensor | None] = {}
        self._shared: dict[int, tuple[weakref.ref[torch.Tensor], int, Any]] = {}

    def __enter__(self) -> "LayerHooks":
        if "torch._dynamo" in sys.modules:  # compiled code does not run hooks that were added later
            self._open.enter_context(torch.compiler.set_stance("force_eager"))
        for target in (one for one in self.targets if not one.experts):

            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = target.name) -> Any:
                return self._after_layer(name, args[0] if args else next(iter(kwargs.values()), None), output)

            module = self.model.get_submodule(target.name)
            self._open.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def walk(self, batches: NumberedBatches, look: Callable[[Batch, int], None]) -> None:
        """Hand the batches of this process to `look` with their number of examples, whole or one example at a time.

        `look` passes the batch through the model. Where it raises RowsUnknown or SameSizes, what it added must be undone:
        the same examples come again, in other batches.
        """
        for first, count, batch in batches:
            in_order = in_rows(self.model, batch, count)
            waiting = [(0, count)]
            while waiting:
                start, stop = waiting.pop(0)
                alone = self.alone is not None or not in_order
                if alone and stop - start > 1:
                    if self.alone is None:
                        self.go_alone("the images or sounds of a batch are not one for each example")
                    waiting[:0] = [(example, example + 1) for example in range(start, stop)]
                    continue
                part = some_examples(self.model, batch, count, start, stop)
                self.first = first + start
                try:
                    look(self._ready(part, stop - start, alone=alone), stop - start)
                except RowsUnknown as found:
                    self.go_alone(str(found))
                    waiting.insert(0, (start, stop))
                except SameSizes:
                    waiting[:0] = [(start, start + 1), (start + 1, stop)]

    def go_alone(self, why: str) -> None:
        """From now on examples go through the model one at a time."""
        self.alone = why
        _LOG.info("%s: examples go through the model one at a time, which takes longer", why)

    def _ready(self, batch: Batch, count: int, *, alone: bool) -> Batch:
        """Get ready for a batch of `count` examples; returns it on the model's device."""
        batch = on_device_of(self.model, without_padding(self.model, batch) if alone else batch)
        self._alone, self.count, self._shared = alone, count, {}
        tokens = [
            v for v in batch.values() if isinstance(v, torch.Tensor) and v.ndim == 2 and not v.is_floating_point()
        ]
        self._lengths = {ids.shape[1] for ids in tokens}
        # Without padding, a token of the decoder that has no label is one of a prompt.
        told = {key: value for key, value in batch.items() if not (alone and key == "labels")}
        self._masks = token_masks(self.model, told) if self.masked else {}
        if alone or not self._masks:
            return batch
        if other := next((key for key in batch if _not_text(key, batch[key])), None):
            raise RowsUnknown(other, "has no mask of its own, and tokens of the batch are masked")
        if None in self._masks.values():
            apart = with_distinct_lengths(self.model, batch)
            if apart is None:
                raise RowsUnknown("input_ids", "and decoder inputs are equally long and fill all positions")
            batch, self._masks = apart, token_masks(self.model, apart)
        return batch

    def _after_layer(self, name: str, x: Any, output: Any) -> Any:
        if name in self.left_out:
            return output
        try:
            if not isinstance(x, torch.Tensor) or not isinstance(output, torch.Tensor):
                made = next(type(each).__name__ for each in (output, x) if not isinstance(each, torch.Tensor))
                raise CannotScore(f"takes or returns {made}, not one tensor")
            return self.after_layer(name, x, output)
        except CannotScore as why:
            self.left_out[name] = str(why)
            return output

    def after_layer(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
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
            RowsUnknown: it cannot be told which rows are of which example.
            SameSizes: nor which dimension is that of the examples.

        """
        count, width = self.count, tensor.shape[-1]
        if count == 1:
            return tensor.reshape(1, -1, width)
        if tensor.ndim == 3 and tensor.shape[:2] == (count, count):
            raise SameSizes
        if has_part(name, "experts"):  # as many tokens as there are examples may still not be one of each
            raise RowsUnknown(name, "works on the tokens that are routed to it")
        flat = tensor.ndim == 2 and len(tensor) in {count * length for length in self._lengths}
        if len(tensor) != count and not flat:
            raise RowsUnknown(
                name, f"works on rows {tuple(tensor.shape)} that are not apart by example (the batch has {count})"
            )
        return tensor.reshape(count, -1, width)

    def mask(self, x: torch.Tensor, name: str) -> torch.Tensor | None:
        """Which tokens of a layer's input are real, `(examples, tokens)`; None where all are.

        Raises:
            RowsUnknown: the batch has masks, but for other lengths.
            CannotScore: so it has, and it is one example without padding.

        """
        length = self.rows(x, name).shape[1]
        if not self._masks or (x.ndim == 2 and length == 1):
            return None
        if (mask := self._masks.get(length)) is not None:
            return mask.to(x.device)
        why = f"sees {length} tokens an example, but masks are for {sorted(self._masks)}, so padding cannot be told"
        if self._alone:
            raise CannotScore(f"{why}; estimator='fisher' needs no mask")
        raise RowsUnknown(name, why)

    def leave_out(self, why: Mapping[str, str]) -> tuple[Target, ...]:
        """Leave out these targets besides those that could not be scored, with one warning; returns the others.

        Raises:
            ScoresError: none is left.

        """
        self.left_out |= {name: reason for name, reason in why.items() if name not in self.left_out}
        if not self.left_out:
            return tuple(self.targets)
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        said = "; ".join(
            f"{', '.join(map(repr, names[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
            for reason, names in reasons.items()
        )
        kept = tuple(target for target in self.targets if target.name not in self.left_out)
        if not kept:
            raise ScoresError(f"no target can be scored: {said}; choose others by targets=")
        warnings.warn(
            f"{len(self.left_out)} of {len(self.targets)} modules cannot be scored and get no rank: {said}",
            LorankWarning,
            stacklevel=6,
        )
        return kept


class OutputGradientHook(torch.autograd.Function):
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
