"""AllocationLoop: allocation in a training loop of your own (bare PyTorch, accelerate, Lightning)."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lorank.adapter.gain import set_gain
from lorank.budget import Budget, Budgets
from lorank.engine.assembly import TrainingFacts, needs_passes
from lorank.engine.options import ScoringSetChoices
from lorank.engine.scoring_batches import LoaderBatches, RowBatches, ScoringBatches
from lorank.errors import LorankWarning, RecipeError, TrainingError
from lorank.in_training.allocation import Allocation
from lorank.in_training.fresh_start import holds_lambdas
from lorank.in_training.loop_pass import LoopPass, Loss
from lorank.in_training.loss_scaler import LeftOutSteps
from lorank.in_training.sharded_base import warn_of_ddp
from lorank.models.base_dtype import is_narrow
from lorank.plan import RankPlan
from lorank.processes import processes


class AllocationLoop(Allocation):
    """Decide which layer gets which rank in a loop of your own.

    Make it before the optimizer, and call, for every optimizer step:

        loss.backward()                    # the model in train mode; with accumulation, of every micro-batch
        allocation.after_backward()        # before clipping: the regulariser's gradient (orthogonality_added)
        clip_grad_norm_(...)
        allocation.before_step()           # measures
        optimizer.step()
        allocation.after_step(optimizer)   # cuts, before gradients are cleared
        optimizer.zero_grad()

    and `finish(optimizer)` after the last one: the model then carries an ordinary compact PEFT LoRA. With I-LoRA that is the
    plan's adapter at a fresh start, with heads and whatever else trained as before: train it once more, with a new optimizer.

    - Gradients are those of a whole step: with accelerate's `accumulate` make these calls where
      `accelerator.sync_gradients` is true.
    - With a loss scaler call `scaler.unscale_(optimizer)` before `after_backward`.
    - Measures with passes of their own (I-LoRA, IGU-LoRA) compute the loss of a batch again. Where the model is called with
      keyword arguments and its own loss is trained, nothing is to be done; otherwise give `loss` and `before_step(batch)`.
      They make these passes inside of `before_step` and `after_step`: a `loss` that trains under autocast opens it itself.
    - With FSDP2 leave what trains out of the sharding, `fully_shard(..., ignored_params=...)`, before or after this is made.
      Its gradients are averaged over processes in each backward pass through the model.
    - To resume, make model and AllocationLoop as at first, load the model's state, then make the optimizer and load its
      state, then load that of the allocation. A model that was cut on the way has smaller tensors, which an optimizer that
      was made earlier would not hold.
    """

    unfinished = "call finish() after the last step"
    scoring_forms = "a DataLoader, or rows with collate="

    def __init__(
        self,
        model: PeftModel,
        method: str,
        budget: str | int | Budget | Budgets,
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
            budget: adapter parameters that the last cut leaves; see `lorank.Budget`. Or one for each of several groups of
                modules, each of which is cut by itself; see `lorank.allocate`.
            steps: optimizer steps of the whole training.
            scoring_data: for I-LoRA, examples that are not trained on: a DataLoader, or rows with `collate`.
            collate: makes a batch of a list of rows.
            loss: of a model and a batch, as it is trained; None is the loss that the model returns for what it is called with.
                It is asked for the loss of scoring batches too.
            steps_per_epoch: for `window="epoch"`; None is all steps.
            half: whether the loss is computed in half precision (autocast); models in half precision are known by their dtype.
            seed: of path coefficients, batches and the fresh start.
            preset: of the method; None is its default.
            provenance: JSON values that scores and plan carry besides their own.
            **options: over the preset's, as `lorank.RankAllocation` takes them.

        Raises:
            LorankError: as `RankAllocation`.

        """
        super().__init__(method, budget, preset=preset, scoring_data=scoring_data, provenance=provenance, **options)
        batches = self._batches(collate, seed)
        self.step = 0
        self._micro_batch = 0
        self._checked: Any = None
        self._asked, self._left_out = False, LeftOutSteps()
        triplets = self.options.triplets
        self._awaits_after_backward = triplets.orthogonality > 0 and triplets.orthogonality_added == "before-clipping"
        self.prepare(model)
        warn_of_ddp()
        half = half or is_narrow(model)
        facts = TrainingFacts(
            steps,
            steps_per_epoch or steps,
            seed=seed,
            half=half,
            loss_scale=1024.0
            if half
            else 1.0,  # a power of two: nothing but fp16's smallest gradients is changed by it
            may_shrink=processes().num_processes == 1,
        )
        self._passed = LoopPass(model, loss) if needs_passes(self.options) else None
        self._begin(facts, self._passed, batches)
        self._try_scoring()
        self._next_step()

    def begin_micro_batch(self) -> None:
        """Only for training on the path with accumulated gradients: another micro-batch follows in this step."""
        self._micro_batch += 1
        self._draw_gain(self.step, self._micro_batch)

    def after_backward(self) -> None:
        """Gradients of a whole step are there, not yet clipped: add the regulariser's, if it is to be clipped with them."""
        self._awaits_after_backward = False
        if (engine := self._engine) is not None:
            engine.after_backward(self.step + 1)

    def before_step(self, batch: Any = None) -> None:
        """Before the optimizer's step: measure.

        Args:
            batch: the step's last micro-batch, as `loss` takes it; None is what the model was called with.

        Raises:
            TrainingError: a pass of its own is due, and the batch is not known, or its loss is not the one that is trained.

        """
        if (engine := self._engine) is not None:
            self._asked = True
            self._own_passes_follow(True)
            if self._passed is not None:
                self._passed.give(batch)
            engine.before_step(self.step + 1)
            if self._awaits_after_backward:
                self._awaits_after_backward = False  # it is said once
                warnings.warn(
                    "after_backward was not called, so the regulariser is added in before_step, to gradients that may be clipped "
                    "already; call after_backward() before clipping, or say that it is meant: "
                    "orthogonality_added='after-clipping'",
                    LorankWarning,
                    stacklevel=2,
                )

    def after_step(self, optimizer: Any, *, skipped: bool | None = None) -> dict[str, float] | None:
        """After the optimizer's step, before gradients are cleared: cut and shrink where it is time.

        Args:
            optimizer: its moments are cut as the parameters are.
            skipped: the optimizer's step was left out, by a loss scaler or by you (gradients that are not finite, say); it
                does not count, and needs no `before_step`. None asks the optimizer, and accelerate's knows.

        Returns:
            What to log where a cut fell, else None.

        Raises:
            TrainingError: the optimizer trains something else; or scores that are not finite, or at the last cut all zero.

        """
        left_out = self._left_out.was_left_out(optimizer)  # asked at every step
        skipped = left_out if skipped is None else skipped
        logged = None
        if (engine := self._engine) is not None:
            if optimizer is not self._checked and not holds_lambdas(optimizer, engine.adapter):
                raise TrainingError(
                    "the optimizer does not hold the triplets' λ: make it after AllocationLoop, and where a training is resumed "
                    "after model.load_state_dict, from model.parameters()"
                )
            if not (self._asked or skipped):
                raise TrainingError("before_step was not called in this step: call it before optimizer.step()")
            self._asked, self._checked = False, optimizer
            logged = engine.after_step(self.step + 1, optimizer, skipped=skipped)
            logged = None if logged is None else {**logged, **engine.measure.scalars()}
            self._record_cut()
        if not skipped:
            self.step += 1
        self._next_step()
        return logged

    @property
    def ended(self) -> bool:
        """Whether ranks stand. With `factors="fresh"` there is no use in training on."""
        return (engine := self._engine) is None or engine.finished is not None

    def finish(self, optimizer: Any = None, directory: str | Path | None = None) -> RankPlan:
        """Training has ended: the model's adapter becomes a plain LoRA.

        Args:
            optimizer: as in `after_step`.
            directory: where `plan.json`, `scores.safetensors`, `cuts.jsonl` and `ranks.png` are written; None writes nothing.

        Raises:
            TrainingError: nothing was scored yet.

        """
        if self._engine is not None:
            if self.step == 0:
                raise TrainingError(
                    "after_step was never called, so no step is known of: call it after every optimizer.step()"
                )
            model = None if self._model is None else self._model()
            assert model is not None, "the model of an allocation lives as long as its training"
            self._end(model, self.step, optimizer, None if directory is None else Path(directory))
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """Everything from which `load_state_dict` goes on exactly, between two steps, beside the states of model and optimizer.

        Returns:
            `tensors`, JSON `values` and `step`: for `torch.save` (`torch.load` reads it with `weights_only=True`), or for a
            safetensors and a JSON file.

        Raises:
            TrainingError: the allocation has ended.

        """
        if self._engine is None:
            raise TrainingError("the allocation has ended; save the model, it carries a plain LoRA")
        return {**self._state(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue. Load the model's weights first: triplets that were cut are gone from them.

        Raises:
            TrainingError: it is no state of an allocation, or that of another one, or not that of the model's weights.

        """
        if missing := [key for key in ("tensors", "values", "step") if key not in state]:
            raise TrainingError(
                f"this is no state of AllocationLoop: {missing[0]} is missing; give what state_dict() returned"
            )
        if (engine := self._engine) is None:
            raise TrainingError("the allocation has ended; resume with a new model and AllocationLoop")
        engine.adapter.refresh()
        self._check_ranks(state["tensors"])
        # Copies: what is loaded here is changed in place by the steps that follow.
        tensors = {key: tensor.cpu().clone() for key, tensor in state["tensors"].items()}
        self._load_state({"tensors": tensors, "values": state["values"]})
        self.step = state["step"]
        self._next_step()

    def _next_step(self) -> None:
        self._micro_batch = 0
        self._own_passes_follow(False)
        if (engine := self._engine) is not None:
            engine.begin_step(self.step + 1)
            set_gain(engine.adapter, 1.0)  # once ranks stand nothing is drawn any more
            self._draw_gain(self.step, 0)

    def _check_ranks(self, tensors: Mapping[str, torch.Tensor]) -> None:
        assert self.allocator is not None
        for name, rank in zip(self.allocator.adapter.names, self.allocator.adapter.ranks, strict=True):
            units = tensors.get(f"units/{name}")
            if units is not None and len(units) != rank:
                raise TrainingError(
                    f"{name} has rank {rank}, and {len(units)} in the allocation's state: load the model's state of the same "
                    "step first"
                )

    def _batches(self, collate: Callable[[list[Any]], Any] | None, seed: int) -> ScoringBatches | None:
        if not isinstance(self.options, ScoringSetChoices):
            return None
        if self.options.measure.source == "training":
            raise RecipeError(
                "source='training' is for a Trainer, whose data is known; leave it out, and give the training data as "
                "scoring_data"
            )
        rows = hasattr(self.scoring_data, "__getitem__") and hasattr(self.scoring_data, "__len__")
        if isinstance(self.scoring_data, str) or rows is (collate is None):
            raise RecipeError(
                f"scoring_data is {type(self.scoring_data).__name__} {'without' if collate is None else 'with'} collate; give a "
                "DataLoader, or rows with collate=, a function that makes a batch of a list of rows"
            )
        if collate is None:
            return LoaderBatches(self.scoring_data, seed)
        size = self.options.measure.scoring_batch_size or max(1, min(32, len(self.scoring_data)))
        return RowBatches(self.scoring_data, collate, size, seed)
