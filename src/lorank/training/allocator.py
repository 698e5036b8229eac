"""Allocation while adapters train: measure sensitivities, smooth them, cut by the budget curve, shrink for good."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, reduce
from torch import nn

from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.top_b import best_units
from lorank.errors import LorankWarning, TrainingError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.scoring.estimators import QuadratureCheck
from lorank.scoring.smoothing import Absolute, SmoothedSensitivity, combine, sensitivity
from lorank.training.cut_rules import CutRules
from lorank.training.measuring import PathMeasure


class Allocator:
    """The state of one allocation. Steps are optimizer steps, counted from 1; micro-batches and skipped steps are not.

    With several processes all of them do the same: scores are averaged over them and the first one's numbers decide.
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
        self.smoothed = SmoothedSensitivity(options.mean_decay, options.deviation_decay, window, absolute=absolute)
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
        """Whether there are scores to rank by. After one update from zero a ratio is 1/β1 for every entry."""
        return self.smoothed.updates >= (2 if self.options.score in ("ratio", "smoothed-ratio") else 1)

    def before_step(self, step: int) -> None:
        """Between the backward pass and the optimizer's step; gradients are unscaled."""
        self._pending = None
        if self._measures(step):
            if self.path is not None:
                self._pending = self._signed(self.path.sensitivities(self.measured))
            elif self.options.measured == "before-step":
                self._pending = self._signed(self._training_sensitivities(step))
        if self.options.orthogonality > 0:
            off_diagonal = self.options.orthogonality_of == "off-diagonal"
            add_orthogonality_gradient(self.adapter, self.options.orthogonality, off_diagonal=off_diagonal)

    def after_step(self, step: int, optimizer: Any, *, skipped: bool = False) -> dict[str, float] | None:
        """After the optimizer's step, before gradients are cleared. Returns what to log where a cut fell, else None."""
        pending, self._pending = self._pending, None
        if skipped:
            return None
        if self._measures(step) and self.path is None and self.options.measured == "after-step":
            pending = self._signed(self._training_sensitivities(step))
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
        if last and self.path is not None:
            self.check = self.path.check()
        alive = self._unit_scores(step)
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
        if self._masks is not None:  # several processes: cut away what was masked until now
            kept = {n: np.flatnonzero(m.cpu().numpy()) for n, m in zip(self.adapter.names, self._masks, strict=True)}
            self._masks = None
            self._shrink(kept, optimizer)
        if self.path is not None:
            self.path.close()
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
        for key in ("options", "initial_ranks", "parameters", "schedule"):
            if values[key] != own[key]:
                raise TrainingError(
                    f"the checkpoint was written by another allocation: its {key} are {values[key]}, here they are {own[key]}; "
                    "resume with the same RankAllocation, model and number of steps, or start anew"
                )
        device = self.adapter.lambdas[0].device
        held = {key.partition("/")[2]: t.to(device) for key, t in tensors.items() if key.startswith("smoothed/")}
        self.smoothed.restore(held, values["in_window"], values["updates"])
        for name in self.units:
            self.units[name] = tensors[f"units/{name}"].numpy().copy()
            self.scores[name] = tensors[f"scores/{name}"].numpy().copy()
        masks = [tensors[f"mask/{n}"].to(device) for n in range(len(self.units)) if f"mask/{n}" in tensors]
        self._masks = masks or None
        self.measured, self.finished, self.ranks = values["measured"], values["finished"], dict(values["ranks"])
        self.logged_ranks = self.ranks
        if self.path is not None:
            self.path.restore(values["path"])
        self.check = None if values["check"] is None else QuadratureCheck(**values["check"])

    def _measures(self, step: int) -> bool:
        wanted = step < self.schedule.last or not self.ready
        return self.finished is None and wanted and step % self.options.every == 0

    def _scored_factors(self) -> tuple[nn.Parameter, ...]:
        """λ, P, Q; without λ where it counts as |λ|; λ alone in triplet state."""
        if self.options.state == "triplet":
            return self.adapter.lambdas
        scored = self.adapter.factors("all")
        return scored[len(self.adapter.names) :] if self.options.lambda_score == "absolute" else scored

    def _training_sensitivities(self, step: int) -> list[torch.Tensor]:
        factors = self._scored_factors()
        if all(factor.grad is None for factor in factors):
            raise TrainingError(
                f"no triplet has a gradient at step {step}, so nothing can be scored: the loss does not reach the adapter, or "
                "gradients are kept elsewhere (DeepSpeed, FSDP); use one process or DDP, and check that the adapter is active"
            )
        # A module that did not run on this batch (an expert, say) has no gradient: it scores 0 here.
        gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in factors]
        if self.options.state == "triplet":
            return sensitivity([torch.cat(list(factors))], [torch.cat(gradients)])
        return sensitivity(factors, gradients)

    def _signed(self, sensitivities: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.options.state == "triplet" and len(sensitivities) > 1:
            sensitivities = [torch.cat(sensitivities)]
        if self.options.sign == "loss-reduction":
            torch._foreach_neg_(sensitivities)
        elif self.options.sign == "gradient":
            factors = [factor.detach() for factor in self._scored_factors()]
            factors = [torch.cat(factors)] if self.options.state == "triplet" else factors
            torch._foreach_mul_(
                sensitivities, [factor.sign().to(s.dtype) for factor, s in zip(factors, sensitivities, strict=True)]
            )
        return sensitivities

    def _unit_scores(self, step: int) -> dict[str, np.ndarray]:
        """`S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)` (AdaLoRA, eq. 9), or one score a unit in triplet state."""
        o, modules = self.options, len(self.adapter.names)
        found = [
            combine(o.score, mean, deviation, epsilon=o.epsilon, weight=o.ucb_weight)
            for mean, deviation in zip(self.smoothed.mean, self.smoothed.deviation, strict=True)
        ]
        if o.state == "triplet":
            units = found[0]
        else:
            p, q = found[-2 * modules : -modules], found[-modules:]
            units = torch.cat([left.mean(0) for left in p]) + torch.cat([right.mean(1) for right in q])
            if o.lambda_score == "scored":
                units = units + torch.cat(found[:modules])
        if o.lambda_score == "absolute":
            units = units + torch.cat([values.detach().abs() for values in self.adapter.lambdas])
        units = broadcast(reduce(units.contiguous(), "mean"))
        flat = units.double().cpu().numpy()
        if not np.isfinite(flat).all():
            raise TrainingError(
                f"scores are not finite at step {step}; lower the learning rate, raise its warm-up, or use bf16 in place of fp16"
            )
        return dict(zip(self.adapter.names, np.split(flat, np.cumsum(self.adapter.ranks)[:-1]), strict=True))

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
            "rank_allocation/budget": self.ground.parameters,
            "rank_allocation/total_rank": sum(self.ranks.values()),
            "rank_allocation/modules_changed": sum(
                rank != self.logged_ranks[name] for name, rank in self.ranks.items()
            ),
            "rank_allocation/score_mean": float(flat.mean()),
            "rank_allocation/score_max": float(flat.max()),
            "rank_allocation/score_median": float(np.median(flat)),
        }
