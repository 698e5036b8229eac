"""RankAllocation: allocation during training as one callback of a Trainer (I-LoRA, IGU-LoRA, AdaLoRA)."""

import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lorank.adapter.gain import set_gain
from lorank.allocation.cut_history import CUTS
from lorank.budget import Budget, Budgets, budget_text
from lorank.engine.assembly import needs_passes
from lorank.engine.options import ScoringSetChoices
from lorank.errors import TrainingError
from lorank.in_training.allocation import Allocation
from lorank.in_training.checkpoint import holds_state, read_state, read_triplets, write_state
from lorank.in_training.fresh_start import check_uncut, trains_only
from lorank.in_training.loss_scaler import LeftOutSteps
from lorank.in_training.scoring_data import check_name, scoring_batches
from lorank.in_training.sharded_base import refuse_sharded
from lorank.in_training.stage_problems import warn_of_rising_loss
from lorank.in_training.tracker_images import TrackerImages
from lorank.in_training.trainer_setup import (
    JOINED_LATE,
    call_after_backward,
    check_arguments,
    check_setup,
    check_trainer,
    forget_best,
    put_first,
    trainer_pass,
    training_facts,
    warn_of_clipping,
)


class RankAllocation(Allocation, TrainerCallback, ExportableState):
    """Decide while training which layer gets which rank, and end with an ordinary compact PEFT LoRA.

    `Trainer(model, args, callbacks=[RankAllocation(method="igu-lora", budget="8.8M")], ...)`, where the model carries one
    LoRA adapter that trains (`get_peft_model(model, LoraConfig(r=...))`, or TRL's `peft_config=LoraConfig(...)`); its `r`
    is the initial rank of every module, above what the budget will pay for. The adapter becomes triplets when the Trainer
    is made, is cut on the way or at the end, and is folded back when training ends. `plan.json`, `scores.safetensors` and
    `ranks.png` are written to `args.output_dir`, and `cuts.jsonl`: a line for each cut, when it is made, by the main process.

    I-LoRA scores on examples that are not trained on: `RankAllocation("i-lora", budget="8.8M", scoring_data=rows)`. Its
    training is a first stage. When it has ended, the model carries the plan's adapter at a fresh start, and heads and
    whatever else trained are as before; train the model again, with a Trainer of its own, for the adapter that is served.

    A callback is not told how the Trainer computes its loss. `attach(trainer)` tells it: estimators that make passes of their
    own then score by the Trainer's `compute_loss`, whatever that is, and loggers see the numbers of each cut beside the
    loss. Without it those passes take the loss that the model returns, and where that is not the loss of training (DPO,
    label smoothing, a `compute_loss` of your own) training ends with an error that says so. With it the regulariser is added
    before gradients are clipped. Without it that is not possible, since a callback is asked afterwards: there is a warning,
    unless `orthogonality_added="after-clipping"` says that it is meant.

    Checkpoints of the Trainer hold everything: `trainer.train(resume_from_checkpoint=...)` goes on exactly.

    """

    def __init__(
        self,
        method: str,
        budget: str | int | Budget | Budgets,
        *,
        preset: str | None = None,
        scoring_data: Any = None,
        output_dir: str | Path | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Choose.

        Args:
            method: `"i-lora"`, `"igu-lora"` or `"adalora"`.
            budget: adapter parameters that the last cut leaves; see `lorank.Budget`. Or one for each of several groups of
                modules, each of which is cut by itself; see `lorank.allocate`.
            preset: of the method; None is its default. docs/in-training.md and docs/i-lora.md say what they are.
            scoring_data: for I-LoRA: rows that are prepared as the training data, the name of an entry of the Trainer's
                `eval_dataset` (its `get_eval_dataloader` makes the batches; needs `attach`; for TRL, which prepares its data
                itself), or a DataLoader.
            output_dir: for plan, scores, cuts and heat map; None is the Trainer's.
            provenance: JSON values that scores and plan carry besides their own.
            **options: over the preset's, by name: those of `lorank.engine.options.ScoringSetChoices` (I-LoRA) or
                `TrainingBatchChoices` (the others), and of `RankOptions`.

        Raises:
            RecipeError: an unknown method, preset or option, a bad value, or no scoring set where one is needed.
            BudgetError: the budget cannot be read.

        """
        super().__init__(method, budget, preset=preset, scoring_data=scoring_data, provenance=provenance, **options)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._trainer: weakref.ref[Any] | None = None
        self._take_back: Callable[[], None] = lambda: None
        self._micro_batch, self._left_out = 0, LeftOutSteps()
        self._latest: dict[str, float] = {}
        self._images, self.says_what_it_did = TrackerImages(), True

    def attach(self, trainer: Any) -> "RankAllocation":
        """Score by the loss that this Trainer computes, and log each cut to all of its loggers.

        Call it when the Trainer has been made, before `trainer.train()`. With it the Trainer need not get the callback in
        its constructor: `allocation = RankAllocation("igu-lora", "8.8M").attach(trainer)`.

        Args:
            trainer: transformers' Trainer, or one of its subclasses: TRL's trainers, SentenceTransformerTrainer.

        Raises:
            TrainingError: the Trainer has another RankAllocation, is not one that this allocation was given to, or trains by a
                loss that this method cannot score by (docs/in-training.md, "Other trainers").
            LorankError: as `prepare`.

        """
        check_trainer(trainer, self, self.options)
        check_arguments(trainer.args)
        self.prepare(trainer.model)
        put_first(trainer, self)
        read_triplets(trainer)
        self._trainer = weakref.ref(trainer)
        if isinstance(self.scoring_data, str):
            check_name(self.scoring_data, trainer)
        return self

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The Trainer has its model, and not yet an optimizer."""
        check_arguments(args)
        self.prepare(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Turn shares of the run into steps; continue from the checkpoint if the Trainer did."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if self._plan is not None:  # trained once already: the plan stands, the adapter is plain LoRA
            if state.global_step > 0 and holds_state(saved):
                raise TrainingError(
                    "this checkpoint holds triplets, but the model's adapter was folded when training ended, and the Trainer has "
                    "just loaded the one into the other; resume with a new model, Trainer and RankAllocation"
                )
            if self.options.start.factors == "fresh" and not trains_only(model, optimizer):
                raise TrainingError(
                    "this Trainer's optimizer is still that of stage 1, with its moments and parameters that are gone; make a "
                    "new Trainer for stage 2, with the same model"
                )
            return
        if not isinstance(model, nn.Module) or self._model is None or self._model() is not model or not self._adapter:
            raise TrainingError(JOINED_LATE)
        if self.allocator is not None:
            self.allocator.measure.close()  # of a training that was interrupted
        self._take_back()
        self._adapter.refresh()
        refuse_sharded(model)
        check_setup(args, self._adapter, optimizer, self.options.cut.shrink)
        if state.global_step == 0:
            check_uncut(self._adapter, self._initial.ranks)
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None:
            warn_of_clipping(args, self.options.triplets)
        facts = training_facts(model, args, max(1, state.max_steps), train_dataloader, optimizer)
        batches = None
        if isinstance(self.options, ScoringSetChoices):
            batches = scoring_batches(self.scoring_data, self.options, args, train_dataloader, trainer)
        passed = trainer_pass(model, args, self.options, trainer) if needs_passes(self.options) else None
        self._begin(facts, passed, batches)
        if not holds_state(saved):
            self._try_scoring()
        if trainer is not None:
            self._take_back = call_after_backward(trainer, self._after_backward)
        if state.global_step > 0:
            self._load_state(read_state(saved, args, state.global_step))
        if (path := self._cuts_file(args, state)) is not None and self.cut_history is not None:
            self.cut_history.write(path)  # as it was at the checkpoint: what was cut after it is cut again

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """First micro-batch of a step."""
        self._own_passes_follow(False)
        if (engine := self._engine) is not None:
            engine.begin_step(state.global_step + 1)
        self._micro_batch, self.leaves_out = 0, False
        self._draw_gain(state.global_step, self._micro_batch)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Another micro-batch follows."""
        self._micro_batch += 1
        self._draw_gain(state.global_step, self._micro_batch)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Gradients are complete: measure, and add the regulariser's."""
        if (engine := self._engine) is not None and not self.leaves_out:
            self._own_passes_follow(True)
            self._left_out.before_step(optimizer)
            engine.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Weights are new: cut if it is time."""
        if (engine := self._engine) is None:
            return
        skipped = self._left_out.was_left_out(optimizer) or self.leaves_out
        logged = engine.after_step(state.global_step + 1, optimizer, skipped=skipped)
        self._record_cut(self._cuts_file(args, state))
        if logged is None:
            return
        self._latest = {**logged, **engine.measure.scalars()}
        if engine.finished is not None:
            control.should_log = args.logging_strategy != "no"
            set_gain(engine.adapter, 1.0)
            # PEFT takes tensors of rank 0 in a checkpoint for shards that were not gathered.
            warnings.filterwarnings("ignore", message=r"Adapter .*LoRA tensor\(s\) have invalid shape")
            forget_best(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """With `factors: fresh` the last cut ends this training."""
        if (
            self.options.start.factors == "fresh"
            and (engine := self._engine) is not None
            and engine.finished is not None
        ):
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Models from before the last cut are above the budget: they do not compete, and no patience is lost on them."""
        if (engine := self._engine) is not None and engine.finished is None:
            forget_best(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Put the last cut's numbers beside the loss; modules that changed are counted since they were last logged."""
        if logs is not None and "loss" in logs and self._latest and self.allocator is not None:
            self.allocator.logged_ranks = self.allocator.ranks
            said = f"{self.method} ({self.preset}), budget {self.budget}"
            self._images.show(self._trainer and self._trainer(), self.allocator, said, state)
            logs.update(self._latest)
            state.log_history[-1].update(self._latest)
            self._latest = {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that Trainer has just written."""
        if self._engine is not None and state.is_world_process_zero:
            write_state(self._state(), args, state.global_step)

    def state(self) -> dict[str, Any]:
        """Small values, for `trainer_state.json`; tensors go into a file of their own beside it."""
        values = self._state()["values"] if self._engine is not None else None
        return {"args": {"method": self.method, "budget": budget_text(self.budget)}, "attributes": {"saved": values}}

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Fold the triplets into a plain LoRA, and write plan, scores, cuts and heat map.

        Raises:
            TrainingError: training ended before anything could be scored.

        """
        if (engine := self._engine) is None:
            return
        self._take_back()
        if engine.finished is None:
            forget_best(state)  # it was measured before the cut
        path = self._cuts_file(args, state)
        self._end(model, state.global_step, optimizer, None if path is None else path.parent)
        warn_of_rising_loss(state.log_history, engine.finished, self.rate_name)
        if path is not None and self.says_what_it_did:
            for line in self.lines():
                print(f"lorank: {line}")

    def _cuts_file(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """Where the main process writes cuts; no other one writes."""
        return (self.output_dir or Path(args.output_dir)) / CUTS if state.is_world_process_zero else None

    def _after_backward(self, scale: Any) -> None:
        if (engine := self._engine) is None or self._trainer is None:
            return
        if (trainer := self._trainer()) is not None:
            engine.after_backward(trainer.state.global_step + 1, scale)
