"""The mean loss of a batch, of which each of several processes passes its share of the examples through the model."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import distributed, nn

from lorank.errors import DataError
from lorank.scoring.batches import Batch, count_targets
from lorank.scoring.examples import examples_in, in_rows, some_examples
from lorank.scoring.split.collectives import gathered, process_count, process_index, raised_in_all
from lorank.scoring.split.numbered_batches import content_of
from lorank.scoring.undisturbed import undisturbed

_LOG = logging.getLogger(__name__)
# How far the shares' losses together may be from that of the whole batch, relative to it: by rounding, or not a mean.
EQUAL, EQUAL_IN_HALF = 1e-4, 5e-3


@dataclass(frozen=True)
class Share:
    """What one process passes through the model of a batch that all of them have.

    Attributes:
        batch: its examples, or the whole batch.
        factor: of its loss; the mean over processes of `factor · loss` is the loss of the whole batch.
        is_part: whether other processes have the rest.

    """

    batch: Batch
    factor: float = 1.0
    is_part: bool = False

    def averaged(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Mean over processes, in one collective; of a whole batch the tensors themselves."""
        if not self.is_part:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / process_count()).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class SharedLoss:
    """Divides batches among processes, where `L = Σ_p w_p L_p` over the losses `L_p` of their shares.

    `w_p` is the share of the batch's targets that process p has; or `1/n`, where a loss is divided by the targets of all
    processes already (`num_items_in_batch` of a Trainer). Which of the two holds is found out on the first batch in which they
    differ, by the loss of the whole of it. Where neither does (in-batch negatives), batches are not divided.

    Attributes:
        ways: which of the two may hold; empty: every process passes whole batches.

    """

    def __init__(
        self, loss: Callable[[nn.Module, Batch], torch.Tensor], *, half: bool = False, divided: bool = True
    ) -> None:
        """Prepare.

        Args:
            loss: mean loss of a batch, a scalar.
            half: whether it is computed in half precision.
            divided: False leaves batches whole: with dropout, say, which is drawn for a batch.

        """
        self.loss, self.tolerance = loss, EQUAL_IN_HALF if half else EQUAL
        self.count, self.index = process_count(), process_index()
        self.ways: tuple[str, ...] = ("targets", "processes") if divided and self.count > 1 else ()
        self._compared = self._same = False

    def share(self, model: nn.Module, batch: Batch) -> Share:
        """The share of this process in a batch that all have; at first also passes the whole, to compare.

        Raises:
            DataError: the first batch is another one in other processes.
            LorankError: what the loss raises, in all processes.

        """
        if self.ways and not self._same:
            _check_same(batch)
            self._same = True
        divided = self._divided(model, batch) if self.ways else None
        if divided is None:
            return Share(batch)
        part, weights = divided
        if not self._compared or (len(self.ways) > 1 and weights["targets"] != weights["processes"]):
            self._compare(model, batch, part, weights)
        if not self.ways:
            return Share(batch)
        return Share(part, weights[self.ways[0]][self.index] * self.count, is_part=True)

    def _divided(self, model: nn.Module, batch: Batch) -> tuple[Batch, dict[str, list[float]]] | None:
        """The examples of this process, and the weights of all; None for a batch that cannot be divided."""
        try:
            examples = examples_in(batch)
            whole = in_rows(model, batch, examples)
        except DataError:
            return None
        labels = batch.get("labels")
        counts = torch.ones(examples) if not isinstance(labels, torch.Tensor) else count_targets(model, labels)
        edges = [examples * process // self.count for process in range(self.count + 1)]
        if not whole or len(counts) != examples:
            return None
        targets = [float(counts[start:stop].sum()) for start, stop in pairwise(edges)]
        if not all(targets):
            return None
        part = some_examples(model, batch, examples, edges[self.index], edges[self.index + 1])
        return part, {"targets": [one / sum(targets) for one in targets], "processes": [1 / self.count] * self.count}

    def _compare(self, model: nn.Module, batch: Batch, part: Batch, weights: Mapping[str, list[float]]) -> None:
        with raised_in_all(), undisturbed(model), torch.no_grad():
            own = float(self.loss(model, batch)), float(self.loss(model, part))
        losses = gathered(own)
        whole = losses[0][0]
        together = {
            way: sum(weight * loss for weight, (_, loss) in zip(weights[way], losses, strict=True)) for way in self.ways
        }
        self.ways = tuple(way for way in self.ways if abs(together[way] - whole) <= self.tolerance * abs(whole))
        self._compared = True
        if not self.ways and self.index == 0:
            _LOG.warning(
                "%d processes: the loss of a scoring batch is no mean over its examples, so every process passes whole batches",
                self.count,
            )


def _check_same(batch: Batch) -> None:
    """Whether all processes have the same batch.

    Raises:
        DataError: they have not; in all of them.

    """
    if len(set(gathered(content_of(batch)))) > 1:
        raise DataError(
            "the processes have different scoring batches, of which each would pass a share: give all of them the same scoring "
            "data, in the same order"
        )
