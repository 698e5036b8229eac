"""fp16: gradients carry the scale of a loss scaler, which leaves steps out where they overflow."""

from typing import Any

from torch.amp import GradScaler


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


class LeftOutSteps:
    """Tells which steps of accelerate's optimizer its loss scaler has left out.

    A fused optimizer is called for such a step too, and changes nothing. accelerate 1.15 then says that the step was made
    (its issue 4242). But a scaler lowers its scale whenever it leaves a step out, and never otherwise. Each look at the scale
    is a host sync, as optimizers that are not fused have one with a scaler; without a scaler there is none.
    """

    def __init__(self) -> None:
        self._scale: float | None = None

    def before_step(self, optimizer: Any) -> None:
        """Gradients are complete: note the scale, and divide it out of them."""
        if (scaler := _scaler(optimizer)) is not None:
            self._scale = scaler.get_scale()
            unscale(optimizer)

    def was_left_out(self, optimizer: Any) -> bool:
        """Whether the step since `before_step`, or the last question, was left out; without a scaler what accelerate says."""
        left_out = bool(getattr(optimizer, "step_was_skipped", False))
        if (scaler := _scaler(optimizer)) is None:
            return left_out
        before, self._scale = self._scale, scaler.get_scale()
        if before is None:  # good steps since the scale was last changed: none after one that was left out
            return left_out or scaler.state_dict()["_growth_tracker"] == 0
        return left_out or self._scale < before


def _scaler(optimizer: Any) -> GradScaler | None:
    scaler = getattr(optimizer, "scaler", None)
    return scaler if isinstance(scaler, GradScaler) and scaler.is_enabled() else None
