"""A forward pass without weights: what autograd would keep of it for the backward pass, counted on the meta device."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from lorank.adapter.triplet import TripletConv1D, TripletLinear
from lorank.models.loading import quiet_loading
from lorank.module_names import leaf_of, parent_of
from lorank.scoring.precision import at_least_fp32
from lorank.targets import Target, named_parts

_NAME = "default"


class SavedTensors:
    """Counts bytes of tensors that autograd saves, each storage once, weights not at all.

    Of blocks that are alike, with inputs that are alike, one runs and stands for the others.

    Attributes:
        bytes: so far.
        in_blocks: saved while a block of the model ran; blocks are what gradient checkpointing computes again.
        largest_block: of one of them.
        block_inputs: what gradient checkpointing keeps in place of `in_blocks`: what goes into each block, once.

    """

    def __init__(self, model: nn.Module) -> None:
        tensors = (*model.parameters(), *model.buffers())
        # Storages are held on to, so that no later one gets the number of one that is gone.
        self._known: dict[int, Any] = {id_of(tensor): tensor for tensor in tensors}
        self._inputs: dict[int, Any] = {}
        self.bytes = self.in_blocks = self.largest_block = self.block_inputs = 0
        self._blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._ran: dict[Any, tuple[int, Any]] = {}  # what a block is like -> bytes that it saved, and its output
        self._depth = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while open."""
        with torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor), ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(patch.object(block, "forward", partial(self._of_block, block, block.forward)))
            yield

    def _saved(self, tensor: torch.Tensor) -> torch.Tensor:
        if id_of(tensor) not in self._known:
            self._known[id_of(tensor)] = tensor.untyped_storage()
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def _of_block(self, block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self._depth:  # a block inside of a block is a part of it
            return forward(*args, **kwargs)
        given = list(_tensors_in((*args, *kwargs.values())))
        for tensor in given:
            if id_of(tensor) not in self._inputs:
                self._inputs[id_of(tensor)] = tensor.untyped_storage()
                self.block_inputs += tensor.untyped_storage().nbytes()
        like = (type(block), *(_like(tensor) for tensor in (*block.parameters(), *given)))
        if like in self._ran:
            within, output = self._ran[like]
            self.bytes += within
            output = _again(output, next(tensor for tensor in given if tensor.is_floating_point()))
        else:
            before, self._depth = self.bytes, 1
            try:
                output = forward(*args, **kwargs)
            finally:
                self._depth = 0
            within = self.bytes - before
            self._ran[like] = within, output
        self.in_blocks += within
        self.largest_block = max(self.largest_block, within)
        return output


def _like(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.requires_grad


class _Stand(torch.autograd.Function):
    """Another tensor of the same shape, which depends on `source` and saves nothing."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(like)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


def _again(output: Any, source: torch.Tensor) -> Any:
    """What a block returned, as of a block that is alike."""
    if isinstance(output, torch.Tensor):
        stands: torch.Tensor = _Stand.apply(source, output.detach())
        return stands
    return tuple(_again(part, source) for part in output) if isinstance(output, tuple) else output


def _tensors_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)


def id_of(tensor: torch.Tensor) -> int:
    """What tensors with the same storage have in common."""
    return int(tensor.untyped_storage()._cdata)


class _FusedAttention(torch.autograd.Function):
    """Saves what PyTorch's fused kernels save.

    Queries, keys, values, a mask or bias where there is one, the output, and one fp32 number for each query and head.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        # As the kernels lay it out, so that the transposed output is contiguous already.
        (batch, heads, length), width = query.shape[:-1], value.shape[-1]
        output = query.new_empty(batch, length, heads, width).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, *(() if mask is None else (mask,)))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


class _Grouped(torch.autograd.Function):
    """A matrix product for groups of rows, with frozen weights: it saves these weights alone."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return rows.new_empty(len(rows), weights.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
    output: torch.Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return output


def _grouped(input: Any, weight: Any, offs: Any) -> torch.Tensor:
    output: torch.Tensor = _Grouped.apply(input, weight)
    return output


# Functions of transformers that look at values or at the device, and what stands in for them: the batch has no padding and no
# packed sequences.
_LOOKED_AT: dict[str, Any] = {
    "transformers.integrations.moe._grouped_mm": _grouped,
    "transformers.masking_utils.find_packed_sequence_indices": lambda *_, **__: None,
    "transformers.modeling_utils.PreTrainedModel.warn_if_padding_and_no_attention_mask": lambda *_, **__: None,
}


@contextmanager
def without_values() -> Iterator[None]:
    """Attention and experts of the meta device save what the kernels of a GPU do, and nothing looks at values."""
    with ExitStack() as stack:
        stack.enter_context(patch("torch.nn.functional.scaled_dot_product_attention", _attention))
        for name, stands_in in _LOOKED_AT.items():
            with suppress(AttributeError, ImportError):  # another version of transformers may not have it
                stack.enter_context(patch(name, stands_in))
        yield


def put_adapters(model: nn.Module, targets: Sequence[Target], ranks: dict[str, int], *, triplets: bool) -> None:
    """Freeze a model without weights, and put adapters without weights on its layers, in fp32, in place."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parts = named_parts(model)
    config = LoraConfig(r=8, lora_alpha=16)
    with torch.device("meta"), no_init_weights():
        for target in (one for one in targets if not one.experts):
            base, rank = parts[target.name], ranks[target.name]
            kind: Any = LoraLinear
            if triplets:
                kind = TripletConv1D if isinstance(base, Conv1D) else TripletLinear
            more = {} if triplets or not isinstance(base, Conv1D) else {"fan_in_fan_out": True}
            layer = kind(base, _NAME, config=config, r=rank, lora_alpha=2 * rank, **more)
            for name, factor in layer.named_parameters():
                if "lora_" in name:
                    factor.data = at_least_fp32(factor.data)
            parts[parent_of(target.name)]._modules[leaf_of(target.name)] = layer


def inputs_of(model: nn.Module, batch: int, seq: int, target_seq: int) -> dict[str, torch.Tensor]:
    """A batch of a model without values: tokens and labels; sounds where the model takes these (Whisper, at its own length).

    Args:
        model: with its head.
        batch: examples.
        seq: tokens of an example.
        target_seq: tokens of an encoder-decoder's target.

    """
    any_model: Any = model
    config = any_model.config
    tokens = torch.zeros(batch, seq, dtype=torch.long, device="meta")
    targets = torch.zeros(batch, target_seq, dtype=torch.long, device="meta")
    if type(model).__name__.endswith("ForSequenceClassification"):
        kind = torch.float32 if config.num_labels == 1 else torch.long
        return {"input_ids": tokens, "labels": torch.zeros(batch, dtype=kind, device="meta")}
    if getattr(any_model, "main_input_name", "") == "input_features":
        frames = 2 * config.max_source_positions  # two frames of sound for each position
        dtype = next(model.parameters()).dtype
        sound = torch.zeros(batch, config.num_mel_bins, frames, dtype=dtype, device="meta")
        return {"input_features": sound, "labels": targets}
    return {"input_ids": tokens, "labels": targets if config.is_encoder_decoder else tokens}


def trace(model: nn.Module, inputs: dict[str, torch.Tensor]) -> SavedTensors:
    """Pass inputs through a model, both without values, and count what is saved, the loss included.

    Args:
        model: on the meta device, with what trains; left in training mode.
        inputs: of `inputs_of`.

    Raises:
        Exception: whatever the model raises, of any kind: where its forward pass looks at values, it cannot be traced.

    """
    any_model: Any = model
    for key in ("pad_token_id", *(("decoder_start_token_id",) if any_model.config.is_encoder_decoder else ())):
        if getattr(any_model.config, key, None) is None:
            setattr(any_model.config, key, 0)  # which token it is changes nothing
    takes = inspect.signature(any_model.forward).parameters
    more = {"use_cache": False} if "use_cache" in takes else {}
    saved = SavedTensors(model)
    model.train()
    with quiet_loading(), without_values(), saved.counting():
        outputs = any_model(**inputs, **more)
    assert outputs.loss is not None
    return saved
