"""Optimizer steps whose loss or gradients are not finite are left out: `on_nonfinite: skip`."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorank.errors import LorankWarning, TrainingError
from lorank.in_training.loss_scaler import unscale
from lorank.in_training.rank_allocation import RankAllocation
from lorank.processes import processes
from lorank.training.checkpoints import where_it_goes_on

IN_A_ROW = 10  # skipped steps that end a stage
SHARE = 10  # one in so many of a stage's steps may be skipped, and `IN_A_ROW` in any case


class SkipNonFinite(TrainerCallback):
    """Leaves out a step whose loss, or a gradient, is not finite: weights, optimizer and allocation stay as they are.

    The gradients are dropped before the optimizer's step, which then passes every parameter over, and allocations measure
    nothing. Of accumulated micro-batches one that is bad makes the step bad, and of several processes one of them. Everything
    else goes on: step count, learning rate, order of the data. A loss scaler (fp16) sees the gradients first, and lowers its
    scale. One host sync a step.

    Args:
        trainer: a `StageTrainer`.

    Attributes:
        steps: that were skipped, counted from 1.

    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.steps = trainer, list[int]()
        self._bad = torch.zeros((), dtype=torch.bool, device=trainer.args.device)
        self._last_loss = torch.zeros((), device=trainer.args.device)

    def noted(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch, for the log; where it is not finite the last one that was. No host sync."""
        bad = ~torch.isfinite(loss)
        self._bad = self._bad | bad
        self._last_loss = torch.where(bad, self._last_loss.to(loss.dtype), loss)
        return self._last_loss.clone()  # Trainer's own, to add to

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Nothing bad yet."""
        self._bad = torch.zeros_like(self._bad)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Gradients are complete: drop them if the step is bad.

        Raises:
            TrainingError: a weight is not finite, or too many steps were skipped.

        """
        if not self._is_bad():
            return
        self.trainer.check_finite()
        self.steps.append(state.global_step + 1)
        self._check_count(state.max_steps)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, RankAllocation):
                callback.leaves_out = True
        unscale(optimizer)  # a loss scaler counts what it has unscaled
        self.trainer.model.zero_grad(set_to_none=True)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Say so while it goes on, too."""
        if logs and self.steps:
            logs["skipped_steps"] = len(self.steps)

    def warn(self) -> None:
        """Say how many steps were skipped.

        Warns:
            LorankWarning: there were some.

        """
        if self.steps and processes().is_main_process:
            state = self.trainer.state
            warnings.warn(
                f"{self.trainer.stage}: {len(self.steps):,} of {state.global_step:,} optimizer steps were skipped, the first "
                f"is step {self.steps[0]:,}: their loss or gradients were not finite, and they changed nothing (on_nonfinite: "
                f"skip). {self._what_to_do()}",
                LorankWarning,
                stacklevel=3,
            )

    def _is_bad(self) -> bool:
        # A sum of squares is fast, and overflows for gradients that are only large: then the largest entries are looked at.
        return self._is_bad_by(2.0) and self._is_bad_by(float("inf"))

    def _is_bad_by(self, norm: float) -> bool:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None and p.grad.numel()]
        bad = self._bad
        if gradients:
            bad = bad | ~torch.isfinite(torch.stack(torch._foreach_norm(gradients, norm))).all()
        if processes().num_processes > 1:
            bad = self.trainer.accelerator.reduce(bad.float(), reduction="sum") > 0
        return bool(bad)

    def _check_count(self, steps: int) -> None:
        row = 1
        while row < len(self.steps) and self.steps[-row] - 1 == self.steps[-row - 1]:
            row += 1
        if row >= IN_A_ROW:
            what = f"{row} optimizer steps in a row were skipped, up to step {self.steps[-1]:,}"
        elif len(self.steps) > max(IN_A_ROW, steps // SHARE):
            what = f"{len(self.steps):,} of {steps:,} optimizer steps were skipped by step {self.steps[-1]:,}"
        else:
            return
        raise TrainingError(
            f"{self.trainer.stage}: {what}, as their loss or gradients were not finite, and the first is step "
            f"{self.steps[0]:,}; the weights or the data are bad; {where_it_goes_on(Path(self.trainer.args.output_dir))}. "
            f"{self._what_to_do()}, in a new output directory"
        )

    def _what_to_do(self) -> str:
        other = "use precision bf16 in place of fp16, " if self.trainer.args.fp16 else ""
        return f"Lower the learning rate, {other}or look at the examples (texts without a target, numbers that are not finite)"
