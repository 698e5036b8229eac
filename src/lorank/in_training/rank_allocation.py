"""RankAllocation: allocation during training as one callback of a Trainer (IGU-LoRA, AdaLoRA)."""

import warnings
import weakref
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lorank.adapter.convert import adapted_layers, fold_to_lora, to_triplets, trained_adapter
from lorank.adapter.padding import refuse_padding
from lorank.adapter.triplet import TripletAdapter
from lorank.budget import Budget
from lorank.engine.allocator import Allocator
from lorank.engine.cut_rules import CutRules, schedule_of
from lorank.engine.initial_adapter import survey
from lorank.engine.measuring import path_measure
from lorank.engine.training_gain import drawn_gain, set_gain
from lorank.errors import TrainingError
from lorank.in_training.checkpoint import holds_state, read_state, write_results, write_state
from lorank.in_training.trainer_setup import (
    JOINED_LATE,
    check_setup,
    check_uncut,
    forget_best,
    put_first,
    refuse_restored_callbacks,
    start_again,
    trained_whole,
    unscale,
)
from lorank.plan import RankPlan
from lorank.recipe.recipe import choose_options
from lorank.scores import ImportanceScores

# Model -> the RankAllocation that made triplets of its adapter.
_ALLOCATIONS: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[RankAllocation]]" = weakref.WeakKeyDictionary()


class RankAllocation(TrainerCallback, ExportableState):
    """Decide while training which layer gets which rank, and end with an ordinary compact PEFT LoRA.

    `Trainer(model, args, callbacks=[RankAllocation(method="igu-lora", budget="8.8M")], ...)`, where the model carries one
    LoRA adapter that trains (`get_peft_model(model, LoraConfig(r=...))`, or TRL's `peft_config=LoraConfig(...)`); its `r`
    is the initial rank of every module, above what the budget will pay for. The adapter becomes triplets when the Trainer
    is made, is cut by the budget curve on the way, and is folded back when training ends: same function, fewer
    parameters. `plan.json`, `scores.safetensors` and `ranks.png` are written to `args.output_dir`.

    A callback is not told how the Trainer computes its loss. `attach(trainer)` tells it: estimators that make passes of their
    own then score by the Trainer's `compute_loss`, whatever that is, and loggers see the numbers of each cut beside the
    loss. Without it those passes take the loss that the model returns, and where that is not the loss of training (DPO,
    label smoothing, a `compute_loss` of your own) training ends with an error that says so.

    Checkpoints of the Trainer hold everything: `trainer.train(resume_from_checkpoint=...)` goes on exactly.

    """

    def __init__(
        self,
        method: str,
        budget: str | int | Budget,
        *,
        preset: str | None = None,
        output_dir: str | Path | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Choose.

        Args:
            method: `"igu-lora"` or `"adalora"`.
            budget: adapter parameters that the last cut leaves; see `lorank.Budget`.
            preset: of the method; None is its default. docs/in-training.md says what they are.
            output_dir: for plan, scores and heat map; None is the Trainer's.
            provenance: JSON values that scores and plan carry besides their own.
            **options: over the preset's: those of `lorank.engine.options.PruningOptions`, and `max_rank`, `min_rank`,
                `multiple_of`, `rank_by` and `scope` of the last cut, as in `lorank.allocate`.

        Raises:
            RecipeError: an unknown method, preset or option, or a bad value.
            BudgetError: the budget cannot be read.

        """
        self.method, self.budget = method, Budget.parse(budget)
        self.preset, self.options, self.limits = choose_options(method, preset, options)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.provenance = {**(provenance or {}), "method": method, "preset": self.preset}
        self._plan: RankPlan | None = None
        self._scores: ImportanceScores | None = None
        self.allocator: Allocator | None = None
        self._adapter: TripletAdapter | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._trainer: weakref.ref[Any] | None = None
        self._beside: dict[str, torch.Tensor] = {}
        self._seed = 0
        self._micro_batch = 0
        self._latest: dict[str, float] = {}

    @property
    def plan(self) -> RankPlan:
        """Which module got which rank.

        Raises:
            TrainingError: training has not ended yet.

        """
        if self._plan is None:
            raise TrainingError("there is no plan before training ends; call trainer.train() first")
        return self._plan

    @property
    def scores(self) -> ImportanceScores:
        """Importance of every unit at its last cut.

        Raises:
            TrainingError: training has not ended yet.

        """
        if self._scores is None:
            raise TrainingError("there are no scores before training ends; call trainer.train() first")
        return self._scores

    def attach(self, trainer: Any) -> "RankAllocation":
        """Score by the loss that this Trainer computes, and log each cut to all of its loggers.

        Call it when the Trainer has been made, before `trainer.train()`. With it the Trainer need not get the callback in
        its constructor: `allocation = RankAllocation("igu-lora", "8.8M").attach(trainer)`.

        Args:
            trainer: transformers' Trainer, or one of its subclasses, TRL's trainers among them.

        Raises:
            TrainingError: the Trainer has another RankAllocation, or is not one that this allocation was given to.
            LorankError: as `prepare`.

        """
        put_first(trainer, self)
        refuse_restored_callbacks(trainer.args)
        self.prepare(trainer.model)
        self._trainer = weakref.ref(trainer)
        return self

    def prepare(self, model: nn.Module) -> None:
        """Make triplets of the adapter that trains, and check the budget. Called when a Trainer is made with the callback.

        Call it yourself, before the optimizer is made, only if you hand an optimizer of your own to the Trainer.

        Raises:
            AdapterError: no adapter, several that train, or layers that have no triplet form.
            BudgetError: a budget that the adapter's initial ranks cannot fill.
            AllocationError: limits that contradict each other or the budget.
            TrainingError: it was prepared for another model.

        """
        if self._model is not None:
            if self._model() is model:
                return
            raise TrainingError("this RankAllocation belongs to another model; make a new one for each model")
        other = _ALLOCATIONS.get(model)
        if other is not None and (owner := other()) is not None and owner.allocator is None:
            raise TrainingError("the model has two RankAllocation callbacks; an adapter has one plan, give one")
        name = trained_adapter(model)
        assert isinstance(model, PeftModel)
        layers = adapted_layers(model, name)
        refuse_padding(layers, name)
        self._ground = survey(model, layers, name, self.budget, self.limits, self.options, self.provenance)
        self._adapter = to_triplets(model, name, initial_lambda=self.options.initial_lambda)
        self._model = weakref.ref(model)
        _ALLOCATIONS[model] = weakref.ref(self)
        if self.options.ending == "retrain":
            self._beside = {n: p.detach().cpu().clone() for n, p in trained_whole(model)}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The Trainer has its model, and not yet an optimizer."""
        refuse_restored_callbacks(args)
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
            return
        if not isinstance(model, nn.Module) or self._model is None or self._model() is not model or not self._adapter:
            raise TrainingError(JOINED_LATE)
        if self.allocator is not None and self.allocator.path is not None:
            self.allocator.path.close()  # of a training that was interrupted
        self._adapter.refresh()
        check_setup(args, self._adapter, optimizer, self.options.shrink)
        if state.global_step == 0:
            check_uncut(self._adapter, self._ground.ranks)
        steps, o = max(1, state.max_steps), self.options
        epoch = (
            len(train_dataloader) // args.gradient_accumulation_steps if isinstance(train_dataloader, Sized) else steps
        )
        schedule, window = schedule_of(o, steps, epoch)
        path = None
        if o.estimator != "training-pass":
            trainer = self._trainer() if self._trainer is not None else None
            path = path_measure(model, self._adapter, o, args, optimizer, trainer)
        rules = CutRules(self._ground, o, schedule)
        self.allocator = Allocator(self._adapter, rules, window, path, may_shrink=args.world_size == 1)
        self._seed = args.seed
        if state.global_step > 0:
            self.allocator.restore(*read_state(saved, args, state.global_step))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """First micro-batch of a step."""
        if self.allocator is not None and self._plan is None:
            self.allocator.begin_step(state.global_step + 1)
        self._micro_batch = 0
        self._draw_gain(state)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Another micro-batch follows."""
        self._micro_batch += 1
        self._draw_gain(state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Gradients are complete: measure, and add the regulariser's."""
        if self.allocator is not None and self._plan is None:
            unscale(optimizer)
            self.allocator.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Weights are new: cut if it is time."""
        if self.allocator is None or self._plan is not None:
            return
        skipped = bool(getattr(optimizer, "step_was_skipped", False))
        logged = self.allocator.after_step(state.global_step + 1, optimizer, skipped=skipped)
        if logged is None:
            return
        self._latest = logged
        if self.allocator.finished is not None:
            control.should_log = args.logging_strategy != "no"
            set_gain(self.allocator.adapter, 1.0)
            # PEFT takes tensors of rank 0 in a checkpoint for shards that were not gathered.
            warnings.filterwarnings("ignore", message=r"Adapter .*LoRA tensor\(s\) have invalid shape")
            forget_best(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """With `ending: retrain` the last cut ends this training."""
        ended = self._plan is None and self.allocator is not None and self.allocator.finished is not None
        if self.options.ending == "retrain" and ended:
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Models from before the last cut are above the budget: they do not compete, and no patience is lost on them."""
        if self._plan is None and self.allocator is not None and self.allocator.finished is None:
            forget_best(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Put the last cut's numbers beside the loss; modules that changed are counted since they were last logged."""
        if logs is not None and "loss" in logs and self._latest and self.allocator is not None:
            self.allocator.logged_ranks = self.allocator.ranks
            logs.update(self._latest)
            state.log_history[-1].update(self._latest)
            self._latest = {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that Trainer has just written."""
        if self.allocator is not None and self._plan is None and state.is_world_process_zero:
            write_state(self.allocator, args, state.global_step)

    def state(self) -> dict[str, Any]:
        """Small values, for `trainer_state.json`; tensors go into a file of their own beside it."""
        values = self.allocator.state()[1] if self.allocator is not None and self._plan is None else None
        return {"args": {"method": self.method, "budget": str(self.budget)}, "attributes": {"saved": values}}

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Fold the triplets into a plain LoRA, and write plan, scores and heat map.

        Raises:
            TrainingError: training ended before anything could be scored.

        """
        if self._plan is not None or self.allocator is None:
            return
        set_gain(self.allocator.adapter, 1.0)
        before_cut = self.allocator.finished is None
        try:
            scores, plan = self.allocator.finish(state.global_step, optimizer)
        finally:
            if self.allocator.path is not None:
                self.allocator.path.close()
        if before_cut:
            forget_best(state)  # it was measured before the cut
        fold_to_lora(model, self.allocator.adapter, plan.scale)
        self._scores, self._plan = scores, plan
        if self.options.ending == "retrain":
            start_again(model, self.allocator.adapter.adapter_name, self._beside, args.seed)
        if state.is_world_process_zero:
            write_results(scores, plan, self.output_dir or Path(args.output_dir))

    def _draw_gain(self, state: TrainerState) -> None:
        if self.options.train_on_path and self.allocator is not None and self.allocator.finished is None:
            seed = f"{self._seed}/gain/{state.global_step}/{self._micro_batch}"
            set_gain(self.allocator.adapter, drawn_gain(self.options, seed))
