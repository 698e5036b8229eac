"""Path scores: gradients of the held-out loss along the path from a baseline to the trained adapters (I-LoRA, eq. 4)."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lorank.adapter.path import displacement, path_point
from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import PathScoreOptions, ScoringSetOptions, TrainingBatchOptions
from lorank.engine.quadrature import path_nodes
from lorank.errors import LorankError
from lorank.scoring.batches import Batch, call, loss_in
from lorank.scoring.precision import at_least_fp32
from lorank.scoring.split.shared_loss import Share
from lorank.scoring.undisturbed import undisturbed

LossFunction = Callable[[nn.Module, Batch], torch.Tensor]


def model_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The task loss that a transformers model computes from a batch with labels. Scalar."""
    loss = loss_in(call(model, batch))
    if loss is None:
        raise LorankError("the model returned no loss; scoring batches need `labels`")
    return loss


def path_integral(
    model: nn.Module,
    adapter: TripletAdapter,
    batch: Batch,
    points: Sequence[tuple[float, float]],
    factors: Sequence[torch.Tensor],
    *,
    moved: str = "lambda",
    baseline: Sequence[torch.Tensor] | None = None,
    absolute: bool = False,
    loss: LossFunction = model_loss,
    loss_scale: float = 1.0,
    share: Share | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """`Σ_k w_k ∂L(θ(α_k))/∂f` for every factor f, one forward and backward pass a point; and the losses `L(θ(α_k))`.

    Args:
        model: forward pass gives the loss.
        adapter: the triplets that the path moves.
        batch: of the scoring set, or of training.
        points: path coefficients with their weights.
        factors: what is differentiated by; shapes of the result.
        moved: see `path_point`.
        baseline: see `path_point`.
        absolute: sum `w_k |∂L/∂f|` in place of the signed gradients.
        loss: scalar loss of a batch.
        loss_scale: factor in the backward pass, divided out again.
        share: of several processes: what of the batch this one has; gradients are then those of the whole batch, losses those
            of the share.

    """
    share = share or Share(batch)
    if not points:
        raise LorankError("a path needs at least one node; give at least one path coefficient")
    total: list[torch.Tensor] | None = None
    losses = []
    for alpha, weight in points:
        with path_point(adapter, alpha, moved=moved, baseline=baseline):
            value = loss(model, share.batch)
            # A module that did not run on this batch (an expert, say) has no gradient: it scores 0 here.
            scaled = value * (loss_scale * share.factor)
            found = torch.autograd.grad(scaled, list(factors), materialize_grads=True)
        gradients = share.averaged([at_least_fp32(gradient) for gradient in found])
        if absolute:
            gradients = list(torch._foreach_abs(gradients))
        weighted = list(torch._foreach_mul(gradients, weight / loss_scale))
        total = weighted if total is None else list(torch._foreach_add(total, weighted))
        losses.append(value.detach())
    assert total is not None
    return total, losses


def drawn_gain(options: ScoringSetOptions | TrainingBatchOptions, seed: str) -> float:
    """`α` drawn from {1/N, ..., 1}, or `α³` where the path moves P, λ and Q (IGU-LoRA's code); a function of the seed."""
    n = options.intervals if isinstance(options.intervals, int) else 20
    drawn = random.Random(seed).randint(1, n) / n
    return drawn**3 if options.moved == "all" else drawn


class PathScorer:
    """Scores all units of rank on one batch of the scoring set.

    With gradients `g(α)` at `θ(α)` and weights `w_k` of the path nodes (one drawn α counts with weight 1), a unit's
    score on a batch is, over its λ_i, P[:, i] and Q[i, :],

    - `parameter_factor="none"`: `Σ_k w_k ‖g(α_k)‖_1` (eq. 4), each vector's L1 norm divided by its length with
      `vector_reduction="mean"` (AdaLoRA, eq. 9), as it is with `"sum"`;
    - `"absolute"`: the same reduction of `|(θ - θ0) Σ_k w_k g(α_k)|`, integrated gradients, over the moved factors;
    - `"signed"`: `-Σ (θ - θ0) Σ_k w_k g(α_k)`: how much of the loss reduction `L(θ0) - L(θ)` the unit brought. The
      shares of all units add up to it as nodes grow (completeness), over the moved factors.

    The training state is left as it was: parameters, their `.grad`, dropout modes and the random streams.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: TripletAdapter,
        options: PathScoreOptions | None = None,
        *,
        baseline: Sequence[torch.Tensor] | None = None,
        loss: LossFunction = model_loss,
        seed: int = 0,
        loss_scale: float = 1.0,
    ) -> None:
        """Prepare to score.

        Args:
            model: forward pass gives the loss.
            adapter: the triplets of that model.
            options: which score.
            baseline: θ0 for `options.baseline == "initial"`, one tensor for each of `adapter.factors(options.moved)`.
            loss: scalar loss of a batch, mean over its examples.
            seed: of the drawn path coefficients.
            loss_scale: factor of the loss in the backward pass, divided out of its gradients; above 1 it keeps small
                fp16 gradients from vanishing.

        """
        self.loss_scale = loss_scale
        self.model, self.adapter, self.loss, self.seed = model, adapter, loss, seed
        self.options = options or PathScoreOptions()
        self.baseline = baseline
        if self.options.baseline == "initial" and baseline is None:
            raise LorankError("baseline 'initial' needs the initial values; capture them before training starts")
        self.nodes = path_nodes(self.options.nodes, self.options.intervals)

    @property
    def passes_per_batch(self) -> int:
        """Forward and backward passes that one scoring batch costs."""
        points = 1 if self.options.draw == "random" else len(self.nodes.alphas)
        return points * (len(self.adapter.names) if self.options.path_scope == "module" else 1)

    def drawn_points(self, draw: int) -> list[tuple[float, float]]:
        """Path coefficients and weights for scoring batch number `draw`: a function of seed and number alone.

        A random node is drawn evenly and carries `n w_k`, so that its expectation is the whole sum.
        """
        points = list(zip(self.nodes.alphas, self.nodes.weights, strict=True))
        if self.options.draw == "sweep":
            return points
        alpha, weight = random.Random(f"{self.seed}/path/{draw}").choice(points)
        return [(alpha, weight * len(points))]

    def batch_scores(self, batch: Batch, draw: int = 0, share: Share | None = None) -> torch.Tensor:
        """Score every unit on one batch: `(units,)` in the order of `adapter.names`, fp32 (fp64 for fp64 adapters).

        Args:
            batch: of the scoring set.
            draw: its number.
            share: what of it this one of several processes has; all then get the scores of the whole.

        """
        share = share or Share(batch)
        points = self.drawn_points(draw)
        if self.baseline is not None:  # captured, perhaps, before the model was moved to its device
            factors = self.adapter.factors(self.options.moved)
            self.baseline = [start.to(factor.device) for start, factor in zip(self.baseline, factors, strict=True)]
        seed = random.Random(f"{self.seed}/dropout/{draw}").getrandbits(63)
        with undisturbed(self.model, dropout_seed=seed if self.options.dropout else None):
            if self.options.path_scope == "global":
                return torch.cat(self._module_scores(self.adapter, self.baseline, share, points))
            scores = []
            for index in range(len(self.adapter.names)):
                baseline = None if self.baseline is None else self.baseline[index :: len(self.adapter.names)]
                scores += self._module_scores(self.adapter.only(index), baseline, share, points)
            return torch.cat(scores)

    def _module_scores(
        self,
        adapter: TripletAdapter,
        baseline: Sequence[torch.Tensor] | None,
        share: Share,
        points: list[tuple[float, float]],
    ) -> list[torch.Tensor]:
        """Per-unit scores `(r_m,)` of each module of `adapter`."""
        options, modules = self.options, len(adapter.names)
        # Integrated gradients are made of the moved factors alone; the plain norm looks at all three.
        factors = adapter.factors("all" if options.parameter_factor == "none" else options.moved)
        total, _ = path_integral(
            self.model,
            adapter,
            share.batch,
            points,
            factors,
            share=share,
            moved=options.moved,
            baseline=baseline,
            absolute=options.parameter_factor == "none",
            loss=self.loss,
            loss_scale=self.loss_scale,
        )
        if options.parameter_factor != "none":
            moved = [at_least_fp32(d) for d in displacement(adapter, moved=options.moved, baseline=baseline)]
            total = list(torch._foreach_mul(total, moved))
            if options.parameter_factor == "absolute":
                total = list(torch._foreach_abs(total))
        sign, reduce = (-1.0, "sum") if options.parameter_factor == "signed" else (1.0, options.vector_reduction)
        lambdas, p, q = total[:modules], total[modules : 2 * modules], total[2 * modules :]
        units = lambdas
        if p:
            units = list(torch._foreach_add(units, [_reduce(matrix, 0, reduce) for matrix in p]))
            units = list(torch._foreach_add(units, [_reduce(matrix, 1, reduce) for matrix in q]))
        if options.granularity == "module":
            units = [unit.mean().expand_as(unit) for unit in units]
        return list(torch._foreach_mul(units, sign))


def _reduce(matrix: torch.Tensor, dim: int, how: str) -> torch.Tensor:
    return matrix.mean(dim) if how == "mean" else matrix.sum(dim)
