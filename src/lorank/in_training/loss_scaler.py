"""fp16: gradients carry the scale of a loss scaler, which leaves steps out where they overflow."""

from typing import Any

import torch


def unscale(optimizer: Any) -> None:
    """Divide the loss scale out of fp16 gradients, unless clipping has done so."""
    scaler = _scaler(optimizer)
    if scaler is None:
        return
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def step_was_left_out(optimizer: Any) -> bool:
    """Whether the last step of accelerate's `optimizer` was left out; False for optimizers that know of no loss scaler.

    A fused optimizer is called for such a step too, and changes nothing. accelerate 1.15 then says that the step was made
    (its issue 4242), so the gradients are asked: a scaler leaves a step out where one of them is not finite. With a scaler
    this is one host sync a step, which optimizers that are not fused have anyway.
    """
    if getattr(optimizer, "step_was_skipped", False):
        return True
    if _scaler(optimizer) is None:
        return False
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in trained if p.grad is not None and p.grad.numel()]
    if not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()):
        return False
    # A sum of squares overflows for gradients that are only large.
    return not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _scaler(optimizer: Any) -> Any:
    scaler = getattr(optimizer, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
