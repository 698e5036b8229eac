"""Scores of modules from the frozen model, before any training: what `lorank.score` calls."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lorank.errors import DataError, LorankWarning, ScoresError
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss, summed_loss
from lorank.scoring.calibration import CalibrationSums, calibrate
from lorank.scoring.curvature.hutchinson import trace_with_errors
from lorank.scoring.options import HESSIAN_OF, CalibrationOptions, FoldOptions, HessianOptions
from lorank.scoring.spectrum import combined, effective_rank, topk_share
from lorank.scoring.weights import weight_of
from lorank.targets import Target, unit_costs

BOOTSTRAP_DRAWS = 32
Options = TypeVar("Options", bound=CalibrationOptions)


@dataclass(frozen=True)
class ScoringInput:
    """What is scored, and on what.

    Attributes:
        model: the base model, without adapters.
        targets: layers that can be adapted.
        batches: calibration batches, or None.
        options: of the calibration pass.
        loss: see `lorank.score`.
        seed: of Hutchinson's directions and of the bootstrap.
        provenance: JSON values that the scores carry on.

    """

    model: nn.Module
    targets: Sequence[Target]
    batches: Iterable[Batch] | None
    options: CalibrationOptions
    loss: SummedLoss = summed_loss
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, kind: type[Options]) -> Options:
        """The options, which are of this class: those of the method's own measure."""
        assert isinstance(self.options, kind), f"{type(self.options).__name__} is not {kind.__name__}"
        return self.options

    def needed_batches(self) -> Iterable[Batch]:
        """The batches.

        Raises:
            DataError: there are none.

        """
        if self.batches is None:
            raise DataError("this score needs calibration batches; give a loader, or use method='magnitude'")
        if isinstance(self.batches, Mapping):
            raise DataError("the loader is a single batch; give an iterable of batches, [batch] for one")
        return self.batches

    def scores(self, values: Mapping[str, np.ndarray], **rest: Any) -> ImportanceScores:
        """Scores of those of the targets that have values, with provenance, which names the others under `left_out`."""
        made = {**self.provenance, **rest.pop("provenance", {})}
        if left_out := [target.name for target in self.targets if target.name not in values]:
            made["left_out"] = left_out
        kept = unit_costs(target for target in self.targets if target.name in values)
        return ImportanceScores(values, kept, provenance=made, **rest)


def sensitivity_scores(scoring: ScoringInput) -> ImportanceScores:
    """Sensitivity-LoRA: `ΔE ≈ ½ Σ h_ii δ_i²`, so what a layer's Hessian diagonal holds is how much the loss minds its change.

    `S_m = norm(tr H_m)^a · norm(topk_m)^b · norm(effective rank_m)^c`, see `lorank.scoring.spectrum`; the diagonal by
    `options.estimator`, one pass. arXiv 2509.09119 as far as it is known: trace, "Topk", "Effective Rank"
    and proportional ranks are the paper's, everything else a choice that docs/sensitivity-lora.md lists. Fused experts are
    scored by `fisher` alone, of the gradient of their parameter; the trace is the sum over all experts.

    Raises:
        DataError: no batches, or none with labels for an estimator that needs them.
        ScoresError: as `lorank.scoring.calibration.calibrate`, or no layer is sensitive at all.

    Warns:
        LorankWarning: preset `paper` with an estimator that does not look at the loss; a trace that is negative, or not
            above its standard error.

    """
    options = scoring.chosen(HessianOptions)
    estimator = options.estimator
    if estimator == "gram" and scoring.provenance.get("preset") == "paper":
        warnings.warn(
            "preset paper takes the Hessian of the loss, but estimator gram, which was chosen over it, does not look at the "
            "loss; leave the estimator out (measure.estimator in a recipe), or choose fisher, kfac or hutchinson",
            LorankWarning,
            stacklevel=4,
        )

    def columns_of(sums: CalibrationSums, target: Target, weights: torch.Tensor) -> torch.Tensor:
        columns = _mean(sums.columns, target, weights, sums.tokens.get(target.name, sums.targets))
        if estimator == "gram":
            columns = 2 * target.d_out * columns
        if estimator == "kfac":
            columns = columns * _mean(sums.outputs, target, weights, sums.targets)
        return columns / target.d_out if options.per_output else columns

    def score(columns: Sequence[torch.Tensor]) -> torch.Tensor:
        trace = torch.stack([each.sum(-1) for each in columns], -1)
        share = torch.stack([topk_share(each, options.topk) for each in columns], -1)
        rank = torch.stack([effective_rank(each) for each in columns], -1)
        weights = (options.trace_weight, options.topk_weight, options.effective_rank_weight)
        scores = combined(list(zip((trace, share, rank), weights, strict=True)))
        below = int((trace[0] < 0).sum())
        if below == len(columns) and not scores[0].any():
            raise ScoresError(
                f"the estimated traces of all {below} modules are negative, so every score is 0: far from a minimum a loss can "
                "curve downwards; raise probes, score on more examples, or use estimator='fisher' or 'kfac', never negative"
            )
        if below:
            warnings.warn(
                f"the estimated trace of {below} of {len(columns)} modules is negative and counts as zero; raise probes, or "
                "score on more examples",
                LorankWarning,
                stacklevel=5,
            )
        return scores

    found = {"estimator": estimator, "hessian_of": HESSIAN_OF[estimator]}
    return _calibrated(scoring, estimator, columns_of, score, found)


def gradient_scores(scoring: ScoringInput) -> ImportanceScores:
    """Mean of `|w · g|` over the weights of a layer and the calibration examples, `g` the gradient of one example's loss.

    GoRA (arXiv 2502.12171) takes the mean of `|W ∘ G|` with G over a few batches; here an example is a batch of its own,
    so that no gradient of a whole weight has to be kept, and the score does not depend on how examples are batched. Of fused
    experts it is the mean over the weights of all of them, also those that a token was not routed to, whose gradient is 0.

    Raises:
        DataError: as `sensitivity_scores`.
        ScoresError: as `sensitivity_scores`.

    """

    def columns_of(sums: CalibrationSums, target: Target, weights: torch.Tensor) -> torch.Tensor:
        return _mean(sums.columns, target, weights, sums.targets) / target.weights

    return _calibrated(
        scoring, "gradient", columns_of, lambda columns: torch.stack([each.sum(-1) for each in columns], -1), {}
    )


@torch.no_grad()
def magnitude_scores(scoring: ScoringInput) -> ImportanceScores:
    """Mean `|w|` of a layer, or of all experts of one: needs no data, and says nothing about the task; a control."""
    values = {}
    for target in scoring.targets:
        weight = (
            scoring.model.get_parameter(target.name)
            if target.experts
            else weight_of(scoring.model.get_submodule(target.name))
        )
        mean = weight.abs().mean(dtype=torch.float64)
        if not bool(torch.isfinite(mean)):
            raise ScoresError(f"weights of {target.name!r} are not finite; load the model again")
        values[target.name] = np.array([float(mean)])
    return scoring.scores(values, max_ranks=_max_ranks(scoring.targets))


def _calibrated(
    scoring: ScoringInput, quantity: Any, columns_of: Any, score: Any, provenance: Mapping[str, Any]
) -> ImportanceScores:
    """One pass, the score of it, and of every resample of its examples."""
    options, began = scoring.chosen(FoldOptions), time.perf_counter()
    directions: dict[str, Any] = {}
    if isinstance(options, HessianOptions):
        directions = {"probes": options.probes, "modules_at_once": options.modules_at_once}
    sums = calibrate(
        scoring.model,
        scoring.targets,
        scoring.needed_batches(),
        quantity,
        folds=options.folds,
        seed=scoring.seed,
        loss=scoring.loss,
        **directions,
    )
    targets = [target for target in scoring.targets if target.name not in sums.left_out]
    draws, used = resampling(sums.targets, scoring.seed)
    scored = score([columns_of(sums, target, draws) for target in targets]).numpy()
    if not scored[0].any():
        raise ScoresError(
            "no layer is sensitive on these calibration examples (every score is 0); look at labels and masks"
        )
    names = [target.name for target in targets]
    found: dict[str, Any] = {}
    if used > 1:
        # A bootstrap of n folds is narrower than their spread by √(1 - 1/n).
        spread = scored[3:].std(0, ddof=1) * (used / (used - 1)) ** 0.5
        found["standard_errors"] = {name: spread[k : k + 1] for k, name in enumerate(names)}
        parts = {"halves": scored[1:3], "bootstrap": scored[3:]}
        found["resamples"] = {kind: {name: part[:, k] for k, name in enumerate(names)} for kind, part in parts.items()}
    else:
        others = f" (of {sums.examples:,}, no other has a label that counts)" if sums.examples > 1 else ""
        warnings.warn(
            f"the scores are of a single example{others}, so no standard error is known, and chance may have decided the ranks; "
            "score on a few hundred examples (more batches; in a recipe measure.examples)",
            LorankWarning,
            stacklevel=4,
        )
    made = {
        "calibration": options.model_dump(mode="json"),
        "examples": sums.examples,
        "batches": sums.batches,
        "seconds": round(time.perf_counter() - began, 3),
    }
    if sums.alone is not None:
        made["one_example_at_a_time"] = sums.alone
    if quantity == "hutchinson":
        made["traces"] = _traces(sums, next(iter(sums.traces.values())).shape[0])
    if quantity != "gram":
        made["counted_targets"] = int(sums.targets.sum())
    return scoring.scores(
        {name: scored[0, k : k + 1] for k, name in enumerate(names)},
        max_ranks=_max_ranks(targets),
        provenance={**provenance, **made},
        **found,
    )


def _traces(sums: CalibrationSums, probes: int) -> dict[str, dict[str, float | None]]:
    """Hutchinson's traces with their standard errors, for the provenance; warns where an error is not below its trace."""
    found, unsure, by_probes = dict[str, dict[str, float | None]](), list[str](), list[float]()
    for name, traces in sums.traces.items():
        trace, error, of_probes = trace_with_errors(traces, sums.counts)
        kept = (None if np.isnan(one) else float(f"{one:.6g}") for one in (trace, error, of_probes))
        found[name] = dict(zip(("trace", "standard_error", "standard_error_of_probes"), kept, strict=True))
        if error >= abs(trace) > 0:
            unsure.append(name)
            by_probes.append((of_probes / error) ** 2)
    if unsure:
        raised = ["probes (in a recipe expert.measure.probes)", "the number of examples"]
        if probes > 1:  # it is known which of the two makes most of the noise
            raised = [raised[0 if np.median(by_probes) > 0.5 else 1]]
        more = f" and {len(unsure) - 3} more" if len(unsure) > 3 else ""
        warnings.warn(
            f"the standard error of the trace is not below its value in {len(unsure)} of {len(found)} modules "
            f"({', '.join(map(repr, unsure[:3]))}{more}); raise {' or '.join(raised)}",
            LorankWarning,
            stacklevel=6,
        )
    return found


def resampling(targets: torch.Tensor, seed: int) -> tuple[torch.Tensor, int]:
    """Weights of the folds `(1 + 2 + draws, folds)`: all once; every other fold and the rest; drawn with replacement.

    Returns:
        The weights, float64 (a single row if there are fewer than two folds with targets), and how many folds have targets.

    """
    used = torch.nonzero(targets)[:, 0]
    rows = torch.zeros(1 + 2 + BOOTSTRAP_DRAWS if len(used) > 1 else 1, len(targets), dtype=torch.float64)
    rows[0, used] = 1
    if len(used) > 1:
        rows[1, used[::2]] = rows[2, used[1::2]] = 1
        drawn = np.random.default_rng(seed).multinomial(len(used), np.ones(len(used)) / len(used), BOOTSTRAP_DRAWS)
        rows[3:, used] = torch.from_numpy(drawn).double()
    return rows, len(used)


def _mean(
    sums: Mapping[str, torch.Tensor], target: Target, weights: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """`(weights @ sums) / (weights @ counts)`, `(draws, d_in)` float64 on the CPU; 0 for a layer without a part in the loss."""
    if target.name not in sums:
        return torch.zeros(len(weights), target.d_in, dtype=torch.float64)
    summed = sums[target.name].double().cpu()
    each = summed[:, None] if summed.ndim == 1 else summed
    # A resample may be of examples none of which reaches a layer (a decoder without labels): nothing of nothing is 0.
    return torch.nan_to_num((weights @ each) / (weights @ counts.double().cpu())[:, None])


def _max_ranks(targets: Sequence[Target]) -> dict[str, int]:
    return {target.name: min(target.d_in, target.d_out) for target in targets}
