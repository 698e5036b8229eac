"""Memory for activations: what the backward pass needs of a batch, with and without gradient checkpointing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lorank.memory.adapter_bytes import FP32, Trained, trained_heads
from lorank.memory.base_bytes import in_dtype
from lorank.memory.question import Question
from lorank.memory.trace import inputs_of, put_adapters, trace
from lorank.models.base_dtype import DTYPES
from lorank.targets import Target


@dataclass(frozen=True)
class Activations:
    """Bytes that are held from the forward to the backward pass of one micro-batch.

    Attributes:
        saved: everything, the loss and its logits included, without gradient checkpointing.
        in_blocks: of these, what blocks save.
        largest_block: of these, what one block saves.
        block_inputs: what gradient checkpointing keeps in place of `in_blocks`.
        logits: the logits in the model's dtype and the copy in fp32 that the loss is made of.
        logits_gradient: for a moment, when the backward pass begins: gradients of the log-softmax's output and of its input, in
            fp32.
        merged_experts: of `saved`, copies `W + ΔW` of adapted tensors of experts, which PEFT makes in every forward pass.
        traced: whether a forward pass was traced; otherwise these are estimates by a formula.

    """

    saved: int
    in_blocks: int
    largest_block: int
    block_inputs: int
    logits: int
    logits_gradient: int
    traced: bool
    merged_experts: int = 0

    def peak(self, *, checkpointing: bool) -> int:
        """The most that is held at a time.

        `saved` and the gradient of the logits; with gradient checkpointing what is saved outside of blocks, the inputs of blocks,
        and the larger of that gradient and one block, which is computed again when the gradient is gone.
        """
        if not checkpointing:
            return self.saved + self.logits_gradient
        outside = self.saved - self.in_blocks + self.block_inputs
        return outside + max(self.logits_gradient, self.largest_block)


def activations(
    model: nn.Module, targets: Sequence[Target], question: Question, trained: Trained, dtype: str, *, triplets: bool
) -> Activations:
    """Trace a forward pass of the model with its adapters, both without weights. Changes the model.

    Where the forward pass looks at values, which the meta device does not have, a formula stands in: for each of T tokens and
    each of L blocks `22 d + 3 f` numbers in the model's dtype (d hidden size, f width of the MLP), and for each adapter its
    input and r numbers in fp32. Adapted experts add a copy of their tensors, see `merged_experts`.

    Args:
        model: on the meta device, in fp32.
        targets: what is adapted.
        question: batch and tokens.
        trained: initial ranks.
        dtype: of the base.
        triplets: whether adapters are triplets.

    """
    vocabulary = _vocabulary(model)
    in_dtype(model, dtype)
    width = DTYPES[dtype].itemsize
    target_seq = question.target_seq or question.seq
    tokens = question.batch * (target_seq if _encoder_decoder(model) else question.seq)
    gradient = 2 * FP32 * tokens * vocabulary
    logits = tokens * vocabulary * (width + (FP32 if width != FP32 else 0))
    put_adapters(model, targets, dict(trained.initial_ranks), triplets=triplets)
    for parameter in trained_heads(model, question.modules_to_save):
        parameter.requires_grad_(True)
    if question.gradient_checkpointing:
        # So does PEFT, since blocks of the reentrant form need inputs with gradients; what stands before the blocks then saves.
        any_model: Any = model
        any_model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    try:
        saved = trace(model, inputs_of(model, question.batch, question.seq, target_seq))
    except Exception:  # of any kind: what a forward pass without values may run into is the model's own
        found = _by_formula(model, targets, question, trained, (width, logits, gradient))
    else:
        found = Activations(
            saved.bytes, saved.in_blocks, saved.largest_block, saved.block_inputs, logits, gradient, traced=True
        )
    return _with_experts(found, targets, width)


def _with_experts(found: Activations, targets: Sequence[Target], width: int) -> Activations:
    """With the copies of adapted tensors of experts, which are in blocks: two in one, gate with up, and down."""
    copies = [width * target.weights for target in targets if target.experts]
    merged, largest = sum(copies), sum(sorted(copies)[-2:])
    return replace(
        found,
        saved=found.saved + merged,
        in_blocks=found.in_blocks + merged,
        largest_block=found.largest_block + largest,
        merged_experts=merged,
    )


def _encoder_decoder(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config.is_encoder_decoder)


def _vocabulary(model: nn.Module) -> int:
    """Outputs of a token, 0 for a classifier, whose logits are of whole examples."""
    any_model: Any = model
    try:
        output = any_model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        output = None
    return 0 if output is None else int(output.weight.shape[0])


def _by_formula(
    model: nn.Module, targets: Sequence[Target], question: Question, trained: Trained, sizes: tuple[int, int, int]
) -> Activations:
    any_model: Any = model
    config, (width, logits, gradient) = any_model.config.get_text_config(), sizes
    hidden = int(getattr(config, "hidden_size", 768))
    layers = int(getattr(config, "num_hidden_layers", 12))
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    tokens = question.batch * question.seq
    of_blocks = tokens * layers * (22 * hidden + 3 * wide) * width
    of_adapters = (
        tokens * FP32 * sum(target.d_in * (width != FP32) + trained.initial_ranks[target.name] for target in targets)
    )
    inside = of_blocks + of_adapters
    block_inputs = tokens * hidden * width * layers
    return Activations(inside + logits, inside, inside // max(1, layers), block_inputs, logits, gradient, traced=False)
