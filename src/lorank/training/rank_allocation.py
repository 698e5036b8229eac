"""RankAllocation: allocation during training as one callback of a Trainer (IGU-LoRA, AdaLoRA)."""

import inspect
import random
import warnings
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from lorank.adapter.convert import fold_to_lora, to_triplets, trained_adapter
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.budget import Budget
from lorank.errors import AllocationError, TrainingError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.scoring.path import LossFunction
from lorank.training.allocation_files import read_state, write_results, write_state
from lorank.training.allocator import Allocator
from lorank.training.cut_rules import CutRules
from lorank.training.ground import survey
from lorank.training.measuring import PathMeasure
from lorank.training.pruning import PruningOptions
from lorank.training.recipe import choose_options


class RankAllocation(TrainerCallback, ExportableState):
    """Decide while training which layer gets which rank, and end with an ordinary compact PEFT LoRA.

    `Trainer(model, args, callbacks=[RankAllocation(method="igu-lora", budget="8.8M")], ...)`, where the model carries one
    LoRA adapter that trains (`get_peft_model(model, LoraConfig(r=...))`, or TRL's `peft_config=LoraConfig(...)`); its `r`
    is the initial rank of every module, above what the budget will pay for. The adapter becomes triplets when the Trainer
    is made, is cut by the budget curve on the way, and is folded back when training ends: same function, fewer
    parameters. `plan.json`, `scores.safetensors` and `ranks.png` are written to `args.output_dir`.

    Checkpoints of the Trainer hold everything: `trainer.train(resume_from_checkpoint=...)` goes on exactly.

    """

    def __init__(
        self,
        method: str = "igu-lora",
        budget: str | int | Budget = "r=4",
        *,
        preset: str | None = None,
        loss: LossFunction | None = None,
        output_dir: str | Path | None = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Choose.

        Args:
            method: `"igu-lora"` or `"adalora"`.
            budget: adapter parameters that the last cut leaves; see `lorank.Budget`.
            preset: of the method; None is its default. docs/in-training.md says what they are.
            loss: `(model, inputs) -> scalar` for estimators with passes of their own, where the model's own loss is not
                what is trained on.
            output_dir: for plan, scores and heat map; None is the Trainer's.
            provenance: JSON values that scores and plan carry besides their own.
            **options: over the preset's: those of `lorank.training.pruning.PruningOptions`, and `max_rank`, `min_rank`,
                `multiple_of`, `rank_by` and `scope` of the last cut, as in `lorank.allocate`.

        Raises:
            RecipeError: an unknown method, preset or option, or a bad value.
            BudgetError: the budget cannot be read.

        """
        self.method, self.budget = method, Budget.parse(budget)
        self.preset, self.options, self.limits = choose_options(method, preset, options)
        self.loss, self.output_dir = loss, None if output_dir is None else Path(output_dir)
        self.provenance = {**(provenance or {}), "method": method, "preset": self.preset}
        self._plan: RankPlan | None = None
        self._scores: ImportanceScores | None = None
        self.allocator: Allocator | None = None
        self._adapter: TripletAdapter | None = None
        self._beside: dict[str, torch.Tensor] = {}
        self._random_seed = 0
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

    def prepare(self, model: nn.Module) -> None:
        """Make triplets of the adapter that trains, and check the budget. Called when a Trainer is made with the callback.

        Call it yourself, before the optimizer is made, only if you hand an optimizer of your own to the Trainer.

        Raises:
            AdapterError: no adapter, several that train, or layers that have no triplet form.
            BudgetError: a budget that the adapter's initial ranks cannot fill.

        """
        name = trained_adapter(model)
        assert isinstance(model, PeftModel)
        if self._adapter is not None:
            return
        layers = {n: m for n, m in model.get_base_model().named_modules() if name in getattr(m, "lora_A", {})}
        self._ground = survey(model, layers, name, self.budget, self.limits, self.options, self.provenance)
        self._adapter = to_triplets(model, name, initial_lambda=self.options.initial_lambda)
        # PEFT takes tensors of rank 0 in a checkpoint for shards that were not gathered.
        warnings.filterwarnings("ignore", message=r"Adapter .*LoRA tensor\(s\) have invalid shape")
        if self.options.ending == "retrain":
            self._beside = {n: p.detach().cpu().clone() for n, p in _trained_whole(model)}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The Trainer has its model, and not yet an optimizer."""
        if args.restore_callback_states_from_checkpoint:
            raise TrainingError(
                "restore_callback_states_from_checkpoint would replace RankAllocation by a new one; set it to False: "
                "RankAllocation restores itself"
            )
        self.prepare(model)
        _come_first(self)

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
        if self._plan is not None:
            return  # trained once already: the plan stands, the adapter is plain LoRA
        if self._adapter is None or trained_adapter(model) != self._adapter.adapter_name:
            raise TrainingError(
                "RankAllocation joined after the Trainer was made (add_callback, or model_init); give it to the Trainer's "
                "constructor, callbacks=[RankAllocation(...)], with a model"
            )
        _check_setup(args, self._adapter, optimizer, self.options.shrink)
        steps = max(1, state.max_steps)
        o = self.options
        schedule = CutSchedule.of_run(steps, o.begin, o.end, o.interval)
        window = _window(o, steps, train_dataloader, args.gradient_accumulation_steps)
        first_score = (2 if "ratio" in o.score else 1) * window * o.every
        if first_score >= schedule.last:
            raise AllocationError(
                f"the last cut is at step {schedule.last} of {steps}, but the first scores need {first_score} steps (every "
                f"{o.every}, window {window}, score {o.score}); lower every or window, raise end, or train longer"
            )
        path = None
        if o.estimator != "training-pass":
            scale = 1024.0 if args.fp16 else 1.0
            path = PathMeasure(model, self._adapter, o, seed=args.seed, loss=self.loss, loss_scale=scale)
        rules = CutRules(self._ground, o, schedule)
        self.allocator = Allocator(self._adapter, rules, window, path, may_shrink=args.world_size == 1)
        self._random_seed = args.seed
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(type(self).__name__)
            self.allocator.restore(*read_state(saved, args, state.global_step))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """First micro-batch of a step."""
        self._micro_batch = 0
        self._draw_gain(state.global_step)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Another micro-batch follows."""
        self._micro_batch += 1
        self._draw_gain(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Gradients are complete: measure, and add the regulariser's."""
        if self.allocator is not None and self._plan is None:
            _unscale(optimizer)
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
            control.should_log = True
            self._set_gain(1.0)
            # Models from before the last cut are above the budget: they do not compete for the best one.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """With `ending: retrain` the last cut ends this training."""
        if self.options.ending == "retrain" and self.allocator is not None and self.allocator.finished is not None:
            control.should_training_stop = True

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
            write_state(self.allocator, args, state.global_step, self.allocator.adapter.adapter_name)

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
        self._set_gain(1.0)
        self._scores, self._plan = self.allocator.finish(state.global_step, optimizer)
        fold_to_lora(model, self.allocator.adapter, self._plan.scale)
        if self.options.ending == "retrain":
            _start_again(model, self.allocator.adapter.adapter_name, self._beside)
        if state.is_world_process_zero:
            write_results(self._scores, self._plan, self.output_dir or Path(args.output_dir))

    def _draw_gain(self, step: int) -> None:
        if self.options.train_on_path and self.allocator is not None and self.allocator.finished is None:
            n = self.options.intervals if isinstance(self.options.intervals, int) else 20
            drawn = random.Random(f"{self._random_seed}/gain/{step}/{self._micro_batch}").randint(1, n) / n
            self._set_gain(drawn**3 if self.options.moved == "all" else drawn)

    def _set_gain(self, gain: float) -> None:
        if self.options.train_on_path and self._adapter is not None:
            for layer in self._adapter.layers:
                layer.training_gain = gain


def _come_first(callback: TrainerCallback) -> None:
    """Move to the front of the Trainer's callbacks, before those that report: only then do they see what is logged here.

    A callback is not told whose it is; the handler that is calling it knows.
    """
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            handler.callbacks.remove(callback)
            handler.callbacks.insert(0, callback)
            return
        frame = frame.f_back


def _check_setup(args: TrainingArguments, adapter: TripletAdapter, optimizer: Any, shrink: str) -> None:
    """What would make an allocation impossible, or wrong without a word."""
    kind = args.distributed_state.distributed_type.value if args.distributed_state is not None else "NO"
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP"):
        raise TrainingError(
            f"RankAllocation needs whole parameters and gradients on every process, which {kind} does not keep; "
            "use one process or DDP (torchrun, accelerate launch), or allocate first and train the plan with it"
        )
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(values) not in optimised for values in adapter.lambdas):
        raise TrainingError(
            "the optimizer does not hold the triplets' λ: it was made before the adapter became triplets; call "
            "RankAllocation.prepare(model) before you make the optimizer"
        )
    if args.load_best_model_at_end and shrink == "every":
        raise TrainingError(
            "load_best_model_at_end could bring back tensors that shrink='every' has cut since; use shrink='last'"
        )


def _window(options: PruningOptions, steps: int, batches: Any, accumulation: int) -> int:
    """Scored mini-batches in an aggregate."""
    window = options.window
    if isinstance(window, str):
        epoch = len(batches) // accumulation if isinstance(batches, Sized) else steps
        return max(1, epoch // options.every)
    return window if isinstance(window, int) else max(1, round(window * steps / options.every))


def _unscale(optimizer: Any) -> None:
    """Divide the loss scale out of fp16 gradients, unless clipping has done so."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def _trained_whole(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains beside the adapter: heads, biases."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name)


@torch.no_grad()
def _start_again(model: PeftModel, adapter_name: str, beside: Mapping[str, torch.Tensor]) -> None:
    """Give the folded adapter PEFT's fresh start, and what trained beside it the values from before training."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A:
            layer.reset_lora_parameters(adapter_name, True)
    for name, parameter in _trained_whole(model):
        if name in beside:
            parameter.copy_(beside[name])
