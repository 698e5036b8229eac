"""Allocation while adapters train: measure sensitivities, smooth them, cut by the budget curve, shrink for good."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.top_b import best_units
from lorank.engine.cut_rules import CutRules
from lorank.engine.estimators import QuadratureCheck
from lorank.engine.measuring import PathMeasure
from lorank.engine.smoothing import Absolute, SmoothedSensitivity, updates_needed
from lorank.engine.unit_scores import over_processes, signed, training_sensitivities, unit_scores
from lorank.errors import LorankWarning, TrainingError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.validation import first_difference

FEW = 3  # scored mini-batches: below this chance has its say, and there is a warning


class Allocator:
    """The state of one allocation. Steps are optimizer steps, counted from 1; micro-batches and skipped steps are not.

    With several processes all of them do the same: what each measured is averaged, and the first one's numbers decide.
    """

    def __init__(
        self,
        adapter: TripletAdapter,
        rules: CutRules,
        window: int,
        path: PathMeasure | None,
        *,
        may_shrink: bool = True,
    ) -> None:
        """Prepare.

        Args:
            adapter: the triplets that train.
            rules: what they started as, which estimator, score and curve, and when to cut.
            window: mini-batches in an aggregate.
            path: measures path integrals, for estimators that need passes of their own.
            may_shrink: False keeps the tensors (DDP has them in buckets) and masks λ after every step instead.

        """
        self.adapter, self.rules, self.path, self.may_shrink = adapter, rules, path, may_shrink
        self.ground, self.schedule, self.options = rules.ground, rules.schedule, rules.options
        ground, options = self.ground, self.options
        absolute: Absolute = {"batch": "batch", "window": "window"}.get(options.sign, "never")  # type: ignore[assignment]
        self.smoothed = SmoothedSensitivity(
            options.mean_decay,
            options.deviation_decay,
            window,
            absolute=absolute,
            # Gradients of training are averaged over processes already.
            **({} if path is None else {"average": over_processes}),
        )
        self.units = {name: np.arange(rank) for name, rank in ground.ranks.items()}
        self.scores = {name: np.full(rank, -np.inf) for name, rank in ground.ranks.items()}
        self.ranks = dict(ground.ranks)
        self.logged_ranks: Mapping[str, int] = self.ranks
        self.finished: int | None = None
        self.measured = 0
        self.check: QuadratureCheck | None = None
        self._pending: list[torch.Tensor] | None = None
        self._masks: list[torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        """Whether there are scores to rank by."""
        return self.smoothed.updates >= updates_needed(self.options.score)

    def begin_step(self, step: int) -> None:
        """Before the forward passes of a step."""
        if self.path is not None and self._measures(step):
            self.path.before_pass(self.measured)

    def before_step(self, step: int) -> None:
        """Between the backward pass and the optimizer's step; gradients are unscaled."""
        self._pending = None
        if self._measures(step):
            if self.path is not None:
                self._pending = signed(self.path.sensitivities(self.measured), self.adapter, self.options)
            elif self.options.measured == "before-step":
                self._pending = training_sensitivities(self.adapter, self.options, step)
        if self.options.orthogonality > 0:
            off_diagonal = self.options.orthogonality_of == "off-diagonal"
            add_orthogonality_gradient(self.adapter, self.options.orthogonality, off_diagonal=off_diagonal)

    def after_step(self, step: int, optimizer: Any, *, skipped: bool = False) -> dict[str, float] | None:
        """After the optimizer's step, before gradients are cleared. Returns what to log where a cut fell, else None."""
        pending, self._pending = self._pending, None
        if skipped:
            return None
        if self._measures(step) and self.path is None and self.options.measured == "after-step":
            pending = training_sensitivities(self.adapter, self.options, step)
        if pending is not None:
            self.smoothed.add(pending)
            self.measured += 1
        if self.finished is not None:
            if self._masks is not None:
                with torch.no_grad():
                    torch._foreach_mul_(list(self.adapter.lambdas), self._masks)
            return None
        return self.cut(step, optimizer) if self.schedule.is_due(step) and self.ready else None

    def cut(self, step: int, optimizer: Any, *, last: bool | None = None) -> dict[str, float] | None:
        """Keep the best units that the budget of this step pays for, and say what to log. One host sync.

        Nothing is cut, and None returned, while every score is zero: λ starts there, and a learning rate that warms up
        leaves it there for a while.

        Raises:
            TrainingError: scores that are not finite, or at the last cut still all zero.

        """
        last = step >= self.schedule.last if last is None else last
        if last and self.path is not None and self.path.listening:
            self.check = self.path.check()
            self.path.close()
        alive = unit_scores(self.smoothed, self.adapter, self.options, step)
        if not any(values.any() for values in alive.values()):
            if not last:
                return None
            raise TrainingError(
                f"every score is 0 at step {step}: the adapter has no influence on the loss; check that it is active, that "
                "target_modules take part in the forward pass, and that the learning rate is above 0"
            )
        for name, values in alive.items():
            self.scores[name][self.units[name]] = values
        self.ranks = dict(self.rules.last_plan(alive).ranks) if last else self.rules.ranks_at(step, alive)
        kept = {name: best_units(values, self.ranks[name]) for name, values in alive.items()}
        if self.may_shrink and (last or self.options.shrink == "every"):
            self._shrink(kept, optimizer)
        else:
            masks = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in alive.items()}
            for name, index in kept.items():
                masks[name][torch.from_numpy(index)] = True
            self.adapter.switch_off(masks)
            if last:
                self._keep_masks(masks)
        if last:
            self.finished = step
            self.smoothed.clear()
        return self._scalars(step, alive)

    def finish(self, step: int, optimizer: Any) -> tuple[ImportanceScores, RankPlan]:
        """Training is over: make up for a last cut that it did not reach, and give scores and plan.

        Raises:
            TrainingError: nothing was ever scored, so there is no allocation; a plain LoRA would pass for one.

        """
        if self.finished is None:
            if not self.ready:
                raise TrainingError(
                    f"training ended at step {step} with {self.measured} scored mini-batches, before there was anything to "
                    f"allocate by: the last cut was to be at step {self.schedule.last}. Were steps skipped, or training "
                    "stopped early? Train longer, or lower every and window"
                )
            warnings.warn(
                f"training ended at step {step}, before the last cut at step {self.schedule.last}; it is made now, and "
                "nothing trains the adapter after it",
                LorankWarning,
                stacklevel=3,
            )
            self.cut(step, optimizer, last=True)
        if self.measured < FEW:
            warnings.warn(
                f"the ranks were decided by {self.measured} scored mini-batches; lower every, or train longer",
                LorankWarning,
                stacklevel=3,
            )
        if self._masks is not None:  # several processes: cut away what was masked until now
            kept = {n: np.flatnonzero(m.cpu().numpy()) for n, m in zip(self.adapter.names, self._masks, strict=True)}
            self._masks = None
            self._shrink(kept, optimizer)
        return self._result()

    def _result(self) -> tuple[ImportanceScores, RankPlan]:
        provenance = {
            **self.ground.provenance,
            "scoring_batches": self.measured,
            "scoring_passes": 0 if self.path is None else self.path.passes,
            "last_cut": self.finished,
            "quadrature": None if self.check is None else asdict(self.check),
        }
        scores = ImportanceScores(self.scores, self.ground.costs, None, provenance)
        return scores, self.rules.plan(self.ranks, {**provenance, "scores": scores.fingerprint, **self.ground.limits})

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and small values from which `restore` goes on exactly."""
        tensors = {f"smoothed/{key}": tensor.contiguous() for key, tensor in self.smoothed.tensors().items()}
        for name in self.units:
            tensors[f"units/{name}"] = torch.from_numpy(self.units[name].copy())
            tensors[f"scores/{name}"] = torch.from_numpy(self.scores[name].copy())
        for number, mask in enumerate(self._masks or ()):
            tensors[f"mask/{number}"] = mask
        values = {
            "measured": self.measured,
            "in_window": self.smoothed.in_window,
            "updates": self.smoothed.updates,
            "finished": self.finished,
            "ranks": self.ranks,
            "initial_ranks": dict(self.ground.ranks),
            "parameters": self.ground.parameters,
            "options": self.options.model_dump(mode="json"),
            "schedule": asdict(self.schedule),
            "path": None if self.path is None else self.path.state(),
            "check": None if self.check is None else asdict(self.check),
        }
        return tensors, values

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            TrainingError: it is the state of another allocation.

        """
        own = self.state()[1]
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
        device = self.adapter.lambdas[0].device
        held = {key.partition("/")[2]: t.to(device) for key, t in tensors.items() if key.startswith("smoothed/")}
        self.smoothed.restore(held, values["in_window"], values["updates"])
        for name in self.units:
            self.units[name] = tensors[f"units/{name}"].numpy().copy()
            self.scores[name] = tensors[f"scores/{name}"].numpy().copy()
        masks = [tensors[f"mask/{n}"].to(device) for n in range(len(self.units)) if f"mask/{n}" in tensors]
        self._masks = masks or None
        self.measured, self.finished = values["measured"], values["finished"]
        # In the model's order: the Trainer's JSON has sorted the names.
        self.ranks = {name: values["ranks"][name] for name in self.units}
        self.logged_ranks = self.ranks
        if self.path is not None:
            self.path.restore(values["path"])
            if self.finished is not None:
                self.path.close()
        self.check = None if values["check"] is None else QuadratureCheck(**values["check"])

    def _measures(self, step: int) -> bool:
        wanted = step < self.schedule.last or not self.ready
        return self.finished is None and wanted and step % self.options.every == 0

    def _shrink(self, kept: Mapping[str, np.ndarray], optimizer: Any) -> None:
        device = self.adapter.lambdas[0].device
        ranks = self.adapter.ranks
        index = {name: torch.from_numpy(positions).to(device) for name, positions in kept.items()}
        shrink(self.adapter, index, optimizer)
        self.units = {name: self.units[name][positions] for name, positions in kept.items()}
        starts = np.cumsum([0, *ranks[:-1]])
        if self.options.state == "triplet":
            whole = np.concatenate([start + kept[name] for start, name in zip(starts, self.adapter.names, strict=True)])
            self.smoothed.keep([(0, torch.from_numpy(whole).to(device))])
        else:
            dims = (1, 0) if self.options.lambda_score == "absolute" else (0, 1, 0)
            self.smoothed.keep([(dim, index[name]) for dim in dims for name in self.adapter.names])

    def _keep_masks(self, masks: Mapping[str, torch.Tensor]) -> None:
        lambdas = self.adapter.lambdas
        self._masks = [masks[n].to(v.device, v.dtype) for n, v in zip(self.adapter.names, lambdas, strict=True)]

    def _scalars(self, step: int, alive: Mapping[str, np.ndarray]) -> dict[str, float]:
        flat = np.concatenate(list(alive.values()))
        return {
            "rank_allocation/step": step,
            "rank_allocation/parameters": sum(rank * self.ground.costs[n] for n, rank in self.ranks.items()),
            "rank_allocation/budget": self.rules.budget_at(step),
            "rank_allocation/final_budget": self.ground.parameters,
            "rank_allocation/total_rank": sum(self.ranks.values()),
            "rank_allocation/modules_changed": sum(
                rank != self.logged_ranks[name] for name, rank in self.ranks.items()
            ),
            "rank_allocation/score_mean": float(flat.mean()),
            "rank_allocation/score_max": float(flat.max()),
            "rank_allocation/score_median": float(np.median(flat)),
        }
