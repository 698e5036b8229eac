"""AllocationLoop: allocation in a training loop of your own (bare PyTorch, accelerate, Lightning)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from lorank.budget import Budget
from lorank.engine.assembly import TrainingFacts, needs_passes
from lorank.engine.options import ScoringSetChoices
from lorank.engine.scoring_batches import LoaderBatches, RowBatches, ScoringBatches
from lorank.engine.training_pass import ModelPass
from lorank.errors import RecipeError, TrainingError
from lorank.in_training.allocation import Allocation
from lorank.in_training.fresh_start import check_uncut, holds_lambdas
from lorank.plan import RankPlan
from lorank.processes import processes

Loss = Callable[[nn.Module, Any], torch.Tensor]


class AllocationLoop(Allocation):
    """Decide which layer gets which rank in a loop of your own.

    Make it before the optimizer, and call, for every optimizer step:

        loss.backward()
        allocation.after_backward()        # before clipping: the regulariser's gradient
        clip_grad_norm_(...)
        allocation.before_step()           # measures
        optimizer.step()
        allocation.after_step(optimizer)   # cuts, before gradients are cleared
        optimizer.zero_grad()

    and `finish(optimizer)` after the last one: the model then carries an ordinary compact PEFT LoRA. With a loss scaler call
    `scaler.unscale_(optimizer)` before `after_backward`.
    """

    way_out = "give AllocationLoop the loss that you train by, loss=function(model, batch), and before_step(batch)"

    def __init__(
        self,
        model: PeftModel,
        method: str,
        budget: str | int | Budget,
        *,
        steps: int,
        scoring_data: Any = None,
        collate: Callable[[list[Any]], Any] | None = None,
        loss: Loss | None = None,
        steps_per_epoch: int | None = None,
        half: bool = False,
        seed: int = 0,
        preset: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Make triplets of the model's adapter.

        Args:
            model: with one LoRA adapter that trains, inside of any wrapper.
            method: `"i-lora"`, `"igu-lora"` or `"adalora"`.
            budget: adapter parameters that the last cut leaves; see `lorank.Budget`.
            steps: optimizer steps of the whole training.
            scoring_data: for I-LoRA: a DataLoader, or rows with `collate`.
            collate: makes a batch of a list of rows.
            loss: of a model and a batch, as it is trained; None is the loss that the model returns for what it is called with.
            steps_per_epoch: for `window="epoch"`; None is all steps.
            half: whether the loss is computed in half precision (autocast).
            seed: of path coefficients, batches and the fresh start.
            preset: of the method; None is its default.
            provenance: JSON values that scores and plan carry besides their own.
            **options: over the preset's, as `lorank.RankAllocation` takes them.

        Raises:
            LorankError: as `RankAllocation`.

        """
        super().__init__(method, budget, preset=preset, scoring_data=scoring_data, provenance=provenance, **options)
        self.step = 0
        self._micro_batch = 0
        self.prepare(model)
        assert self._adapter is not None
        check_uncut(self._adapter, self._initial.ranks)
        half = half or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
        facts = TrainingFacts(
            steps, steps_per_epoch or steps, seed=seed, half=half, may_shrink=processes().num_processes == 1
        )
        self._passed = _LoopPass(model, loss) if needs_passes(self.options) else None
        self._begin(facts, self._passed, self._batches(collate, seed))
        self._next_step()

    def begin_micro_batch(self) -> None:
        """Only for training on the path with accumulated gradients: another micro-batch follows in this step."""
        self._micro_batch += 1
        self._draw_gain(self.step, self._micro_batch)

    def after_backward(self) -> None:
        """Gradients of a whole step are there, not yet clipped: add the regulariser's."""
        if self._is_ours:
            assert self.allocator is not None
            self.allocator.after_backward(self.step + 1)

    def before_step(self, batch: Any = None) -> None:
        """Before the optimizer's step: measure.

        Args:
            batch: the step's last micro-batch, as `loss` takes it; None is what the model was called with.

        """
        if self._is_ours:
            assert self.allocator is not None
            if batch is not None and self._passed is not None:
                self._passed.inputs = batch
            self.allocator.before_step(self.step + 1)

    def after_step(self, optimizer: Any, *, skipped: bool = False) -> dict[str, float] | None:
        """After the optimizer's step, before gradients are cleared: cut and shrink where it is time.

        Args:
            optimizer: its moments are cut as the parameters are.
            skipped: a loss scaler left the step out; it does not count.

        Returns:
            What to log where a cut fell, else None.

        """
        logged = None
        if self._is_ours:
            assert self.allocator is not None
            if self.step == 0 and not holds_lambdas(optimizer, self.allocator.adapter):
                raise TrainingError(
                    "the optimizer does not hold the triplets' λ: make it after AllocationLoop, from model.parameters()"
                )
            logged = self.allocator.after_step(self.step + 1, optimizer, skipped=skipped)
        if not skipped:
            self.step += 1
        self._next_step()
        return logged

    @property
    def ended(self) -> bool:
        """Whether ranks stand. With `ending="retrain"` there is no use in training on."""
        return not self._is_ours or (self.allocator is not None and self.allocator.finished is not None)

    def finish(self, optimizer: Any = None, directory: str | Path | None = None) -> RankPlan:
        """Training has ended: the model's adapter becomes a plain LoRA.

        Args:
            optimizer: as in `after_step`.
            directory: where `plan.json`, `scores.safetensors` and `ranks.png` are written; None writes nothing.

        Raises:
            TrainingError: nothing was scored yet.

        """
        if self._is_ours:
            model = None if self._model is None else self._model()
            assert isinstance(model, PeftModel), "the model of an allocation lives as long as its training"
            self._end(model, self.step, optimizer, None if directory is None else Path(directory))
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """Everything from which `load_state_dict` goes on exactly, for a checkpoint beside model and optimizer."""
        if not self._is_ours:
            raise TrainingError("the allocation has ended; save the model, it carries a plain LoRA")
        assert self.allocator is not None
        return {**self.allocator.state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue. Load the model's weights first: triplets that were cut are gone from them.

        Raises:
            TrainingError: it is the state of another allocation.

        """
        assert self.allocator is not None
        self.allocator.adapter.refresh()
        self.allocator.load_state_dict(state)
        self.step = state["step"]
        self._next_step()

    def _next_step(self) -> None:
        self._micro_batch = 0
        if self._is_ours:
            assert self.allocator is not None
            self.allocator.begin_step(self.step + 1)
            self._draw_gain(self.step, 0)

    def _batches(self, collate: Callable[[list[Any]], Any] | None, seed: int) -> ScoringBatches | None:
        if not isinstance(self.options, ScoringSetChoices):
            return None
        if self.options.source == "training":
            raise RecipeError(
                "source='training' needs the training data, which a loop of your own does not show: give it"
            )
        if collate is None:
            if isinstance(self.scoring_data, (str, list, tuple)):
                raise RecipeError(
                    f"scoring_data is {type(self.scoring_data).__name__}; give a DataLoader, or rows with collate="
                )
            return LoaderBatches(self.scoring_data, seed)
        size = self.options.scoring_batch_size or min(32, len(self.scoring_data))
        return RowBatches(self.scoring_data, collate, size, seed)


class _LoopPass(ModelPass):
    """What the model was called with, and the loss of the user's, if there is one."""

    way_out = AllocationLoop.way_out

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__(model)
        self._given = loss

    def loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The user's loss, or the model's."""
        return super().loss(model, inputs) if self._given is None else self._given(model, inputs)
