"""Allocation while adapters train: measure, smooth, cut by the budget curve, shrink for good."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lorank.adapter.masked_units import MaskedUnits
from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.top_b import best_units
from lorank.engine.cut_rules import CutRules
from lorank.engine.estimators import QuadratureCheck
from lorank.engine.measure import Measure
from lorank.engine.plan_changes import PlanChanges, warn_of_noise
from lorank.engine.smoother import Smoother
from lorank.engine.smoothing import Tensors
from lorank.engine.unit_scores import FirstBad, by_module, sliced_factors, unit_scores
from lorank.errors import LorankWarning, TrainingError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.validation import first_difference

UnitScores = Mapping[str, np.ndarray]


class Allocator:
    """The state of one allocation. Steps are optimizer steps, counted from 1; micro-batches and skipped steps are not.

    For every step call `begin_step`, `after_backward` (before gradients are clipped), `before_step` and `after_step`; after
    the last one `finish`. With several processes all of them do the same: what each measured is averaged, and the first one's
    numbers decide.
    """

    def __init__(
        self, adapter: TripletAdapter, rules: CutRules, measure: Measure, smoother: Smoother, *, may_shrink: bool = True
    ) -> None:
        """Prepare.

        Args:
            adapter: the triplets that train.
            rules: what they started as, the choices of the method, and when to cut.
            measure: what a mini-batch says about units.
            smoother: what many of them say.
            may_shrink: False keeps the tensors (DDP has them in buckets) and masks λ after every step instead.

        """
        self.adapter, self.rules, self.measure, self.smoother = adapter, rules, measure, smoother
        self.schedule, self.options, self.may_shrink = rules.schedule, rules.options, may_shrink
        self.initial = initial = rules.initial
        self.units = {name: np.arange(rank) for name, rank in initial.ranks.items()}
        self.scores = {name: np.full(rank, -np.inf) for name, rank in initial.ranks.items()}
        self.standard_errors: UnitScores | None = None
        self.ranks = dict(initial.ranks)
        self.logged_ranks: Mapping[str, int] = self.ranks
        self.changes = PlanChanges(getattr(self.options.cut, "stop_when_stable", None))
        self.ended, self.measured = "all steps done", 0
        self.finished: int | None = None
        self.last_cut: tuple[int, UnitScores] | None = None  # step, and scores of the units that it chose from
        self.first_bad = FirstBad(adapter.lambdas[0].device)
        self._pending: Tensors | None = None
        self._regularised = False
        self._masked: MaskedUnits | None = None

    def begin_step(self, step: int) -> None:
        """Before the forward passes of a step."""
        self._pending, self._regularised = None, False
        if self._measures(step):
            self.measure.begin_step(self.measured)

    def after_backward(self, step: int, scale: float | torch.Tensor = 1.0) -> None:
        """Add the regulariser's gradient, unless it is added to clipped ones; all of them are multiplied by `scale` now."""
        if self.options.triplets.orthogonality_added == "after-clipping":
            return
        if self.options.triplets.orthogonality > 0 and self._measures(step):
            self._pending = self.measure.after_backward(step)
            if self._pending is not None:
                torch._foreach_div_(self._pending, scale)
        self._regularise(scale)

    def before_step(self, step: int) -> None:
        """Measure; gradients are complete and unscaled. Adds the regulariser's where `after_backward` did not."""
        if self._measures(step) and self._pending is None:
            self._pending = self.measure.before_step(step, self.measured)
        self._regularise(1.0)

    def after_step(self, step: int, optimizer: Any, *, skipped: bool = False) -> dict[str, float] | None:
        """After the optimizer's step, before gradients are cleared. Returns what to log where a cut fell, else None."""
        pending, self._pending, self._regularised = self._pending, None, False
        if skipped:
            return None
        if self._measures(step) and pending is None:
            pending = self.measure.after_step(step, self.measured)
        self.first_bad.note(step, [*(values.grad for values in self.adapter.lambdas), *(pending or ())])
        if pending is not None:
            self.smoother.add(pending)
            self.measured += 1
        if self.finished is not None:
            if self._masked is not None:
                self._masked.hold()
            return None
        compared = pending is not None and self.changes.is_due(self.measured)
        if compared:
            self.changes.compare(self.rules.last_plan(self._unit_scores(step)))
            if self.changes.stable:
                self.ended = f"stable at step {step} of {self.schedule.last}"
                return {**(self.cut(step, optimizer, last=True) or {}), **self.changes.scalars()}
        ready = self.smoother.ready or (self.measure.waits_for_end and step >= self.schedule.last)
        logged = self.cut(step, optimizer) if self.schedule.is_due(step) and ready else None
        return logged if not compared else {**(logged or {}), **self.changes.scalars()} or None

    def cut(self, step: int, optimizer: Any, *, last: bool | None = None) -> dict[str, float] | None:
        """Keep the best units that the budget of this step pays for, and say what to log. One host sync.

        Nothing is cut, and None returned, while every score is zero: λ starts there, and a learning rate that warms up
        leaves it there for a while.

        Raises:
            TrainingError: scores that are not finite, or at the last cut still all zero.

        """
        last = step >= self.schedule.last if last is None else last
        if last:
            for measured in self.measure.at_end():
                self.smoother.add(measured)
                self.measured += 1
            self.measure.before_last_cut()
            self.measure.close()
        alive = self._unit_scores(step)
        if (unscored := self.rules.unscored(alive)) is not None:
            if not last:
                return None
            raise TrainingError(
                f"every score{unscored} is 0 at step {step}: the adapter has no influence on the loss; check that it is active, "
                "that target_modules take part in the forward pass, and that the learning rate is above 0, its warmup over"
            )
        for name, values in alive.items():
            self.scores[name][self.units[name]] = values
        if last and (errors := self.smoother.standard_errors()) is not None:
            self.standard_errors = by_module(unit_scores(errors, self.adapter, self.options), self.adapter, step)
        self.ranks = dict(self.rules.last_plan(alive).ranks) if last else self.rules.ranks_at(step, alive)
        kept = {name: best_units(values, self.ranks[name]) for name, values in alive.items()}
        if self.may_shrink and (last or self.options.cut.shrink == "every"):
            self._shrink(kept, optimizer)
        else:
            masks = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in alive.items()}
            for name, index in kept.items():
                masks[name][torch.from_numpy(index)] = True
            self.adapter.switch_off(masks)
            if last:
                self._masked = MaskedUnits(self.adapter, masks)
        if last:
            self.finished = step
            self.smoother.clear()
        self.last_cut = step, alive
        return self.rules.scalars(step, self.ranks, self.logged_ranks, alive)

    def finish(self, step: int, optimizer: Any) -> tuple[ImportanceScores, RankPlan]:
        """Training is over: make up for a last cut that it did not reach, and give scores and plan.

        Raises:
            TrainingError: nothing was ever scored, so there is no allocation; a plain LoRA would pass for one.

        """
        if self.finished is None:
            if not (self.smoother.ready or self.measure.waits_for_end):
                raise TrainingError(
                    f"training ended at step {step} with {self.measured} scored mini-batches, before there was anything to "
                    f"allocate by: the last cut was to be at step {self.schedule.last}. Were steps skipped, or training "
                    "stopped early? Train longer, or lower every, window and warmup"
                )
            rest = "" if self.options.start.factors == "fresh" else ", and nothing trains the adapter after it"
            warnings.warn(
                f"training ended at step {step} without the last cut, due at step {self.schedule.last}; it is made now{rest}",
                LorankWarning,
                stacklevel=3,
            )
            self.ended = f"stopped at step {step} of {self.schedule.last}"
            self.cut(step, optimizer, last=True)
        if self.measured < self.measure.few:
            warnings.warn(
                f"the ranks were decided by {self.measured} scored mini-batches; {self.measure.more}",
                LorankWarning,
                stacklevel=3,
            )
        if self._masked is not None:  # several processes: cut away what was masked until now
            self._masked.release()
            kept = {n: k.cpu().numpy() for n, k in zip(self.adapter.names, self._masked.kept, strict=True)}
            self._shrink(kept, optimizer)
            self._masked = None
        return self._result()

    def _result(self) -> tuple[ImportanceScores, RankPlan]:
        rule, check, initial = self.changes.rule, self.measure.check, self.initial
        provenance = {
            **self.measure.provenance(),
            **initial.provenance,
            "scoring_batches": self.measured,
            "last_cut": self.finished,
            "ended": self.ended,
            "stop_rule": None if rule is None else rule.in_words,
            "quadrature": None if check is None else asdict(check),
        }
        scores = ImportanceScores(self.scores, initial.costs, self.standard_errors, provenance)
        noise = {} if self.standard_errors is None else warn_of_noise(scores, self.rules)
        made = {**provenance, "scores": scores.fingerprint, **initial.limits, **noise}
        return scores, self.rules.plan(self.ranks, made)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """`tensors` and JSON `values` from which `load_state_dict` goes on exactly."""
        tensors = {f"smoothed/{key}": tensor.contiguous() for key, tensor in self.smoother.state_dict().items()}
        tensors["first_bad"] = self.first_bad.step
        for name in self.units:
            tensors[f"units/{name}"] = torch.from_numpy(self.units[name].copy())
            tensors[f"scores/{name}"] = torch.from_numpy(self.scores[name].copy())
            if self.standard_errors is not None:
                tensors[f"errors/{name}"] = torch.from_numpy(self.standard_errors[name].copy())
        if self._masked is not None:
            tensors |= {f"mask/{number}": mask for number, mask in enumerate(self._masked.masks)}
        values = {
            "measured": self.measured,
            "finished": self.finished,
            "ended": self.ended,
            "changes": self.changes.state_dict(),
            "ranks": self.ranks,
            "initial_ranks": dict(self.initial.ranks),
            "parameters": self.initial.each_parameters,
            "options": self.options.model_dump(mode="json"),
            "schedule": asdict(self.schedule),
            "measure": self.measure.state_dict(),
            "check": None if self.measure.check is None else asdict(self.measure.check),
        }
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            TrainingError: it is the state of another allocation.

        """
        tensors, values, own = state["tensors"], state["values"], self.state_dict()["values"]
        what = {"initial_ranks": "initial ranks", "parameters": "budget in parameters"}
        if values["finished"] is None:  # later nothing is cut any more
            what |= {
                "options": "options",
                "schedule": "schedule of cuts (give begin, end and interval in steps to train longer)",
            }
        for key, name in what.items():
            if difference := first_difference(values[key], own[key]):
                raise TrainingError(
                    f"the checkpoint was written by another allocation, {name}: {difference.strip()}; resume with the same "
                    "RankAllocation, model and number of steps, or start anew"
                )
        held = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith("smoothed/")}
        self.smoother.load_state_dict(held, self.adapter.lambdas[0].device)
        self.first_bad.load(tensors.get("first_bad"))
        for name in self.units:
            self.units[name] = tensors[f"units/{name}"].numpy().copy()
            self.scores[name] = tensors[f"scores/{name}"].numpy().copy()
        if all(f"errors/{name}" in tensors for name in self.units):
            self.standard_errors = {name: tensors[f"errors/{name}"].numpy().copy() for name in self.units}
        if self._masked is not None:
            self._masked.release()
        masks = {name: tensors[f"mask/{n}"] for n, name in enumerate(self.adapter.names) if f"mask/{n}" in tensors}
        self._masked = MaskedUnits(self.adapter, masks) if masks else None
        self.measured, self.finished, self.ended = values["measured"], values["finished"], values["ended"]
        self.changes.load_state_dict(values["changes"])
        # In the model's order: the Trainer's JSON has sorted the names.
        self.ranks = {name: values["ranks"][name] for name in self.units}
        self.logged_ranks = self.ranks
        self.measure.load_state_dict(values["measure"])
        if self.finished is not None:
            self.measure.close()
        self.measure.check = None if values["check"] is None else QuadratureCheck.of(values["check"])

    def _regularise(self, scale: float | torch.Tensor) -> None:
        weight, kind = self.options.triplets.orthogonality, self.options.triplets.orthogonality_of
        if weight > 0 and not self._regularised:
            kept = None if self._masked is None else self._masked.kept
            add_orthogonality_gradient(self.adapter, scale * weight, off_diagonal=kind == "off-diagonal", kept=kept)
            self._regularised = True

    def _measures(self, step: int) -> bool:
        return self.finished is None and self.measure.is_due(step, self.schedule, ready=self.smoother.ready)

    def _unit_scores(self, step: int) -> dict[str, np.ndarray]:
        units = unit_scores(self.smoother.scores(), self.adapter, self.options)
        return by_module(units, self.adapter, step, self.first_bad)

    def _shrink(self, kept: UnitScores, optimizer: Any) -> None:
        device, ranks = self.adapter.lambdas[0].device, self.adapter.ranks
        index = {name: torch.from_numpy(positions).to(device) for name, positions in kept.items()}
        shrink(self.adapter, index, optimizer)
        self.units = {name: self.units[name][positions] for name, positions in kept.items()}
        self.smoother.keep(sliced_factors(self.adapter, self.options, ranks, index))
