"""The measure that looks at a scoring set (I-LoRA)."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lorank.adapter.gain import unit_gain
from lorank.adapter.path import path_point
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.engine.options import ScoringSetChoices
from lorank.engine.path import PathScorer
from lorank.engine.path_measure import PathMeasure
from lorank.engine.scoring_batches import ScoringBatches
from lorank.engine.smoothing import Tensors
from lorank.engine.training_pass import TrainingPass
from lorank.errors import DataError, LorankError, LorankWarning, one_line
from lorank.scoring.split.shared_loss import SharedLoss
from lorank.scoring.undisturbed import undisturbed


class ScoringSetPath(PathMeasure):
    """Scores of whole units on the batches of a scoring set (I-LoRA, eq. 4), see `PathScorer`.

    Of several processes each passes its share of a batch, see `SharedLoss`, and gradients are averaged before any absolute
    value is taken: all get the scores of the whole batch, as one process does. With `dropout` every process passes whole batches.
    """

    few, more = (
        2,
        "their standard error is not known; give more scoring examples, or smaller batches (scoring_batch_size)",
    )

    def __init__(
        self,
        passed: TrainingPass,
        adapter: TripletAdapter,
        options: ScoringSetChoices,
        batches: ScoringBatches,
        *,
        baseline: Sequence[torch.Tensor] | None = None,
        half: bool = False,
        divided: bool = True,
        **settings: Any,
    ) -> None:
        """Prepare; see `PathMeasure`, `PathScorer` and `SharedLoss`, which takes `half` and `divided`."""
        super().__init__(passed, adapter, **settings)
        self.options, self.batches = options, batches
        self.loss_reduction: float | None = None
        self._scored_batches = 0
        self.waits_for_end = options.measure.when == "after"
        self.shared = SharedLoss(passed.held_out_loss, half=half, divided=divided and not options.measure.dropout)
        self.scorer = PathScorer(
            self.model,
            adapter,
            options.measure,
            baseline=baseline,
            loss=self.counted(passed.held_out_loss),
            seed=self.seed,
            loss_scale=self.loss_scale,
        )

    def try_batch(self) -> None:
        """Compute the loss of the first batch, without gradients; the model, training and its random streams stay as they are.

        Raises:
            DataError: the model does not take it, or its loss is not finite.

        Warns:
            LorankWarning: it is the only one.

        """
        batch = self.batches.batch(0, self.adapter.lambdas[0].device)
        try:
            with self.passed.own_passes(), undisturbed(self.model), torch.no_grad():
                loss = float(self.passed.held_out_loss(self.model, batch))
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, LorankError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = error if isinstance(error, LorankError) else one_line(error)  # ours say what to do at their end
            raise DataError(
                f"the loss of the first scoring batch cannot be computed: {reason}; give scoring_data that is "
                "prepared as the training data is"
            ) from error
        if not math.isfinite(loss):
            raise DataError(
                f"the loss of the first scoring batch is {loss}; look at its labels (are all of them -100?)"
            )
        if self.batches.is_single:
            count = self.batches.examples
            of = "" if count is None else f" of {count:,} example{'s' if count > 1 else ''}"
            warnings.warn(
                f"the scoring set is a single batch{of}, so it is not known how far other examples would change the plan "
                "(standard errors are of one batch that is scored again); give more scoring examples, or smaller batches "
                "(scoring_batch_size; in a recipe measure.fraction, measure.scoring_batch_size)",
                LorankWarning,
                stacklevel=4,
            )

    def is_due(self, step: int, schedule: CutSchedule, *, ready: bool) -> bool:
        """Every `every` steps after the warm-up."""
        since = step - schedule.first
        return not self.waits_for_end and since > 0 and since % self.options.measure.every == 0

    def before_step(self, step: int, number: int) -> Tensors | None:
        """Compare the loss with training's where that is due; scores are of the weights after the step."""
        self.compare(number)
        return None

    def after_step(self, step: int, number: int) -> Tensors | None:
        """Scores `(units,)` of one batch."""
        return [self._scored(number)]

    def at_end(self) -> Iterator[Tensors]:
        """With `when: after`, scores of every batch of the scoring set (reading A12)."""
        if self.waits_for_end:
            for number in range(len(self.batches)):
                yield [self._scored(number)]

    def before_last_cut(self) -> None:
        """What signed shares add up to: `L(θ0) - L(θ)`, mean over the first four batches that were scored."""
        if self.options.measure.parameter_factor == "signed" and self._listening and self._scored_batches:
            count = min(len(self.batches), self._scored_batches, 4)
            found = [value for number in range(count) if math.isfinite(value := self._reduction(number))]
            self.loss_reduction = sum(found) / len(found) if found else None

    def provenance(self) -> Mapping[str, Any]:
        """JSON values that scores and plan carry."""
        more = {"scoring_examples": self.batches.examples, "loss_reduction": self.loss_reduction}
        return {**super().provenance(), **more}

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        own = {"passes": self.passes, "scored": self._scored_batches, "loss_reduction": self.loss_reduction}
        return {**own, "batches": self.batches.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.passes, self._scored_batches = state["passes"], state["scored"]
        self.loss_reduction = state["loss_reduction"]
        self.batches.load_state_dict(state["batches"])

    def _scored(self, number: int) -> torch.Tensor:
        batch = self.batches.batch(number, self.adapter.lambdas[0].device)
        self.passes += self.scorer.passes_per_batch
        self._scored_batches = max(self._scored_batches, number + 1)
        # With dropout the model is in train mode, where the gain of training on the path would count.
        with self.passed.own_passes(), unit_gain(self.adapter):
            return self.scorer.batch_scores(batch, number, self.shared.share(self.model, batch))

    def _reduction(self, number: int) -> float:
        batch, scorer = self.batches.batch(number, self.adapter.lambdas[0].device), self.scorer
        with self.passed.own_passes(), undisturbed(self.model), torch.no_grad():
            share = self.shared.share(self.model, batch)
            after = self.passed.held_out_loss(self.model, share.batch)
            with path_point(self.adapter, 0.0, moved=self.options.measure.moved, baseline=scorer.baseline):
                before = self.passed.held_out_loss(self.model, share.batch)
        (reduction,) = share.averaged([(before - after).detach() * share.factor])
        return float(reduction)
