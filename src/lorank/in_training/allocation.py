"""One allocation in somebody's training: the model's triplets, the engine, and what is left when training has ended."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from lorank.adapter.adapted_part import adapted_part, own_config
from lorank.adapter.convert import UNFINISHED, adapted_layers, fold_to_lora, to_triplets, trained_adapter
from lorank.adapter.gain import set_gain
from lorank.adapter.padding import refuse_padding
from lorank.adapter.path import capture
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.cut_history import CUTS, CutHistory
from lorank.budget import Budget, Budgets, read_budgets
from lorank.engine.allocator import Allocator
from lorank.engine.assembly import TrainingFacts, make_allocator
from lorank.engine.initial_adapter import read_adapter
from lorank.engine.options import Choices, ScoringSetChoices
from lorank.engine.path import drawn_gain
from lorank.engine.scoring_batches import ScoringBatches
from lorank.engine.scoring_set_path import ScoringSetPath
from lorank.engine.training_pass import TrainingPass
from lorank.engine.unit_scores import warn_of_dead_triplets
from lorank.errors import AdapterError, RecipeError, TrainingError
from lorank.in_training.adapter_audit import audit_saves
from lorank.in_training.checkpoint import write_results
from lorank.in_training.fresh_start import start_again, state_beside
from lorank.in_training.sharded_base import AveragedGradients, leave_whole, refuse_sharded
from lorank.methods.choose import choose_options
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.report.plan_words import allocation_lines
from lorank.scores import ImportanceScores

# Model -> the Allocation that made triplets of its adapter.
_ALLOCATIONS: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[Allocation]]" = weakref.WeakKeyDictionary()


class Allocation:
    """What `RankAllocation` and `AllocationLoop` share: from a LoRA that trains to triplets, a plan, and a LoRA again.

    Attributes:
        options: the choices of the method.
        allocator: the engine, once training has begun.
        cut_history: ranks and scores that each cut has left, once training has begun.
        leaves_out: whether the step under way will not be made: set before its gradients are measured, it counts for nothing.

    """

    rate_name = "the learning rate"  # for messages; a recipe has a key for it
    unfinished = "call trainer.train(), where the Trainer has this allocation (callbacks=[...], or attach)"
    scoring_forms = (
        "rows prepared as the training data, the name of an entry of eval_dataset, a DataLoader, or source='training'"
    )

    def __init__(
        self,
        method: str,
        budget: str | int | Budget | Budgets,
        *,
        preset: str | None = None,
        scoring_data: Any = None,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.method, self.budget = method, read_budgets(budget)
        _, self.preset, self.options = choose_options(method, preset, options)
        self.scoring_data = scoring_data
        self._check_scoring_data()
        self.provenance = {**(provenance or {}), "method": method, "preset": self.preset}
        self.allocator: Allocator | None = None
        self.cut_history: CutHistory | None = None
        self.leaves_out = False
        self._plan: RankPlan | None = None
        self._scores: ImportanceScores | None = None
        self._adapter: TripletAdapter | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._beside: dict[str, torch.Tensor] = {}
        self._baseline: list[torch.Tensor] | None = None
        self._averaged: AveragedGradients | None = None
        self._seed = 0
        # Tells the files of this training from those of another one with the same options.
        self._training = uuid4().hex

    @property
    def plan(self) -> RankPlan:
        """Which module got which rank.

        Raises:
            TrainingError: training has not ended yet.

        """
        if self._plan is None:
            raise TrainingError(f"there is no plan before training ends; {self.unfinished}")
        return self._plan

    @property
    def scores(self) -> ImportanceScores:
        """Importance of every unit at its last cut.

        Raises:
            TrainingError: training has not ended yet.

        """
        if self._scores is None:
            raise TrainingError(f"there are no scores before training ends; {self.unfinished}")
        return self._scores

    def lines(self) -> list[str]:
        """What was done, in one or two lines: the budget, what is kept, and which modules got no adapter.

        Raises:
            TrainingError: as `plan`.

        """
        lines = allocation_lines(self.plan, self._initial.ranks)
        again = "; at a fresh start: train it once more, with a new Trainer or optimizer"
        return lines if self.options.start.factors != "fresh" else [lines[0] + again, *lines[1:]]

    def prepare(self, model: nn.Module) -> None:
        """Make triplets of the adapter that trains, and check the budget; before the optimizer is made.

        Raises:
            AdapterError: no adapter, several that train, or layers that have no triplet form.
            BudgetError: a budget that the adapter's initial ranks cannot fill.
            AllocationError: limits that contradict each other or the budget.
            TrainingError: it was prepared for another model, or the model is sharded in a way that cannot work.

        """
        if self._model is not None:
            if self._model() is model:
                leave_whole(model)  # prepared before the Trainer was made, and accelerate with it
                return
            raise TrainingError(f"this {self._kind} belongs to another model; make a new one for each model")
        other = _ALLOCATIONS.get(model)
        if other is not None and (owner := other()) is not None and owner.allocator is None:
            raise TrainingError(f"the model has two {self._kind} callbacks; an adapter has one plan, give one")
        refuse_sharded(model)
        name, part = trained_adapter(model), adapted_part(model)
        config = own_config(part, name)
        if config.init_lora_weights == UNFINISHED:
            raise TrainingError(
                "the model's adapter is part of an allocation that has not ended, and an adapter has one plan; resume that one "
                "from a checkpoint, or start with a new model"
            )
        layers = adapted_layers(part, name)
        refuse_padding(layers, name)
        if config.bias == "lora_only":
            raise AdapterError(
                "bias='lora_only' trains biases of modules that may lose their adapter, and PEFT would not save those; use "
                "bias='none' or 'all'"
            )
        self._initial = read_adapter(part, layers, name, self.budget, self.options, self.provenance)
        self._adapter = to_triplets(part, name, initial_lambda=self.options.triplets.initial_lambda)
        leave_whole(model)
        if processes().num_processes > 1:
            self._averaged = AveragedGradients(model)
        self._model = weakref.ref(model)
        _ALLOCATIONS[model] = weakref.ref(self)
        if self.options.start.factors == "fresh":
            self._beside = state_beside(model)
        if isinstance(self.options, ScoringSetChoices) and self.options.measure.baseline == "initial":
            # Taken before any checkpoint is loaded, so that a resumed training has the same initial values.
            self._baseline = capture(self._adapter, self.options.measure.moved)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    @property
    def _engine(self) -> Allocator | None:
        """The allocator, while steps still have to be told to it."""
        return self.allocator if self._plan is None else None

    def _check_scoring_data(self) -> None:
        given = self.scoring_data is not None
        if not isinstance(self.options, ScoringSetChoices):
            if given:
                raise RecipeError(
                    f"scoring_data is for methods with a scoring set (i-lora); {self.method} scores the batches that are "
                    "trained on, leave it out"
                )
        elif self.options.measure.source == "training" and given:
            raise RecipeError("source='training' scores on the training data; leave scoring_data out, or source")
        elif self.options.measure.source == "held-out" and not given:
            raise RecipeError(
                f"{self.method} scores on examples that are not trained on: give scoring_data=..., {self.scoring_forms}"
            )

    def _begin(self, facts: TrainingFacts, passed: TrainingPass | None, batches: ScoringBatches | None) -> None:
        """The number of steps is known: put the engine together."""
        assert self._adapter is not None
        self._seed = facts.seed
        self.allocator = make_allocator(
            self._adapter, self._initial, self.options, facts, passed, batches, self._baseline
        )
        self.cut_history = CutHistory(self._initial.ranks, self._initial.costs)

    def _try_scoring(self) -> None:
        """Pass one batch of the scoring set, so that it does not fail in the middle of training."""
        assert self.allocator is not None
        if isinstance(self.allocator.measure, ScoringSetPath):
            try:
                self.allocator.measure.try_batch()
            except BaseException:
                self.allocator.measure.close()
                raise

    def _state(self) -> dict[str, Any]:
        """The engine's state, and what training began with: a process that resumes may have drawn another start."""
        assert self.allocator is not None
        assert self.cut_history is not None
        state = self.allocator.state_dict()
        held = {f"cuts/{key}": torch.from_numpy(array) for key, array in self.cut_history.arrays().items()}
        held |= {f"beside/{name}": tensor for name, tensor in self._beside.items()}
        held |= {f"baseline/{k}": tensor.contiguous() for k, tensor in enumerate(self._baseline or ())}
        values = {**state["values"], "seed": self._seed, "training": self._training}
        return {"tensors": {**state["tensors"], **held}, "values": values}

    def _load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from what `_state` returned."""
        assert self.allocator is not None
        assert self.cut_history is not None
        values = {**state["values"], "options": _with_defaults(state["values"]["options"], self.options)}
        if values["seed"] != self._seed:
            raise TrainingError(
                f"the checkpoint was written with seed {values['seed']}, this is {self._seed}, which draws other path "
                "coefficients and batches; resume with the same seed, or start anew"
            )
        self.allocator.load_state_dict({**state, "values": values})
        self._training = values["training"]
        tensors = state["tensors"]
        held = {key.partition("/")[2]: tensor.numpy() for key, tensor in tensors.items() if key.startswith("cuts/")}
        if held:  # a checkpoint of an earlier version has none
            self.cut_history.restore(held)
        self._beside = {name: tensors.get(f"beside/{name}", tensor) for name, tensor in self._beside.items()}
        if self._baseline is not None:  # in place: the measure holds the same list
            self._baseline[:] = [tensors.get(f"baseline/{k}", tensor) for k, tensor in enumerate(self._baseline)]

    def _end(self, model: nn.Module, step: int, optimizer: Any, directory: Path | None) -> None:
        """Fold the triplets into a plain LoRA; write plan, scores, cuts and heat map into `directory`.

        Raises:
            TrainingError: training ended before anything could be scored.

        """
        assert self.allocator is not None
        assert self.cut_history is not None
        self._own_passes_follow(False)
        set_gain(self.allocator.adapter, 1.0)
        try:
            scores, plan = self.allocator.finish(step, optimizer)
        finally:
            self.allocator.measure.close()
        self._record_cut()
        fold_to_lora(adapted_part(model), self.allocator.adapter, plan.scale)
        self._scores, self._plan = scores, plan
        if self.options.start.factors == "fresh":
            start_again(model, self.allocator.adapter.adapter_name, self._beside, self._seed)
        audit_saves(adapted_part(model), plan, self.allocator.adapter.adapter_name, self.lines())
        if directory is not None:
            self.cut_history.write(directory / CUTS)
            write_results(scores, plan, directory)
        warn_of_dead_triplets(scores)

    def _own_passes_follow(self, follow: bool) -> None:
        """Between a step's gradients and the next step nothing is averaged over processes; before it, all of it must be."""
        if self._averaged is not None:
            if follow and self._model is not None and (model := self._model()) is not None:
                self._averaged.check(model)
            self._averaged.paused = follow

    def _record_cut(self, path: Path | None = None) -> None:
        """Take down the cut that the engine has just made, if it has; the file at `path` gets a line more."""
        assert self.allocator is not None
        assert self.cut_history is not None
        if (cut := self.allocator.last_cut) is None:
            return
        self.allocator.last_cut = None
        self.cut_history.add(cut[0], self.allocator.ranks, cut[1])
        if path is not None:
            self.cut_history.append(path)

    def _draw_gain(self, step: int, micro_batch: int) -> None:
        """A factor for the adapter's output in the next micro-batch, where training is on the path."""
        if self.options.triplets.train_on_path and (engine := self._engine) is not None and engine.finished is None:
            seed = f"{self._seed}/gain/{step}/{micro_batch}"
            set_gain(engine.adapter, drawn_gain(self.options.measure, seed))


def _with_defaults(saved: Mapping[str, Any], options: Choices) -> dict[str, Any]:
    """Options of a checkpoint; what its version of lorank had no option for was done as the default does it."""
    defaults = {name: type(section)().model_dump(mode="json") for name, section in options}
    return {name: {**defaults.get(name, {}), **own} for name, own in saved.items()}
