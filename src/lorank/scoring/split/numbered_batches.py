"""Batches with the numbers of their examples, of which each of several processes passes its share through the model."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lorank.errors import DataError
from lorank.scoring.batches import Batch
from lorank.scoring.examples import examples_in
from lorank.scoring.random_streams import RandomStreams, random_streams
from lorank.scoring.split.collectives import gathered, of_the_first, process_count, process_index, raised_in_all
from lorank.scoring.split.whole_loader import whole_loader

_LOG = logging.getLogger(__name__)
_NO_MODEL = nn.Module()
_OTHERS = (
    "the processes read other calibration batches, so examples would count twice or not at all; give all of them the same "
    "examples in the same order (a list, a DataLoader with shuffle=False or a generator of one seed), or the loader that "
    "accelerator.prepare returns"
)


class NumberedBatches:
    """Batches, each with the number of its first example among all and how many it has; passed through once.

    Of several processes every one reads all batches and is given batch k if k mod their number is its own, so an example has the
    number that it has in one process. A loader that gives each process a part is undone first, see `whole_loader`. Random
    streams are the first process's, so a loader that shuffles by them has one order in all.

    Attributes:
        batches: how many were read so far, in all processes together.
        examples: how many examples these have.
        shared: whether each process is given a share of them.

    """

    def __init__(self, batches: Iterable[Batch], *, shared: bool = True) -> None:
        """Take the batches; with several processes read the first, and see that all have the same.

        Args:
            batches: any iterable.
            shared: False gives every process all of them.

        Raises:
            DataError: processes read different batches, or a loader whose parts cannot be put together.

        """
        self.batches = self.examples = 0
        self._given = batches
        self._index, self._count = process_index(), process_count()
        self.shared = shared and self._count > 1
        self._digest = hashlib.blake2b(digest_size=16)
        self._streams: RandomStreams | None = None
        if self._count > 1:
            self._streams = of_the_first(RandomStreams.now(_NO_MODEL))
            with raised_in_all():
                loader = whole_loader(batches)
                self._iterator = iter(self._drawn(loader))
                self._first = next(self._iterator, None)
            self.check_same()
            if self.shared and self._index == 0:
                _LOG.warning(
                    "%d processes: %s, and each process passes its share of the batches through the model",
                    self._count,
                    "all read the same loader"
                    if loader is batches
                    else "the loader, which gave each a part, is read whole",
                )

    def __iter__(self) -> Iterator[tuple[int, int, Batch]]:
        """Number of the first example, number of examples, and the batch.

        Raises:
            DataError: there is none, or something that is no batch.

        """
        for batch in self._given if self._count == 1 else self._all():
            first, count, number = self.examples, examples_in(batch), self.batches
            self.examples, self.batches = first + count, number + 1
            if not self.shared or number % self._count == self._index:
                yield first, count, _for_gradients(batch)
        if not self.batches:
            once = iter(self._given) is self._given
            again = "; an iterator gives its batches once: give a list, or make it anew" if once else ""
            raise DataError(f"the calibration loader gave no batch; give at least one{again}")

    def check_same(self) -> None:
        """Whether all processes have read the same batches.

        Raises:
            DataError: they have not; in all of them.

        """
        if len(set(gathered(self._digest.digest()))) > 1:
            raise DataError(_OTHERS)

    def _all(self) -> Iterator[Batch]:
        if self._first is not None:
            yield self._first
            self._first = None
            yield from self._iterator

    def _drawn(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Its batches, drawn from the first process's random streams; those of this process stay as they are."""
        iterator = None
        while True:
            with random_streams(_NO_MODEL, self._streams):
                iterator = iter(loader) if iterator is None else iterator
                batch = next(iterator, None)
                self._streams = RandomStreams.now(_NO_MODEL)
            if batch is None:
                return
            _add_content(self._digest, batch)
            yield batch


def _for_gradients(batch: Batch) -> Batch:
    """The batch with copies of tensors that were made inside of `torch.inference_mode()`, through which no gradient goes."""
    if not any(isinstance(value, torch.Tensor) and value.is_inference() for value in batch.values()):
        return batch
    return {k: v.clone() if isinstance(v, torch.Tensor) and v.is_inference() else v for k, v in batch.items()}


def content_of(batch: Any) -> bytes:
    """A digest of what a batch holds."""
    digest = hashlib.blake2b(digest_size=16)
    _add_content(digest, batch)
    return digest.digest()


def _add_content(digest: Any, value: Any) -> None:
    """Add what a batch holds to a digest, by its bytes: batches of images are large."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().reshape(-1)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(flat.contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, held in value.items():
            digest.update(str(key).encode())
            _add_content(digest, held)
    elif isinstance(value, list | tuple):
        for held in value:
            _add_content(digest, held)
    elif isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
