"""The batches of a scoring set by number: a function of seed and number, so that a resumed training sees the same ones."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from lorank.artefact import checksum
from lorank.engine.overlap import content_sum, values_in
from lorank.errors import DataError, TrainingError
from lorank.scoring.batches import Batch
from lorank.scoring.random_streams import RandomStreams, random_streams
from lorank.scoring.split.collectives import process_count
from lorank.scoring.split.whole_loader import whole_loader


class ScoringBatches:
    """Numbered batches; `len` is how many there are until examples come again.

    Attributes:
        examples: in the scoring set; None where that is not known.
        rows: its examples, where they can be looked at one by one.

    """

    examples: int | None = None
    rows: Any = None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def is_single(self) -> bool:
        """Whether every batch has the same examples, as far as that is known without reading any."""
        raise NotImplementedError

    def batch(self, number: int, device: torch.device) -> Batch:
        """Batch `number`, from 0, on `device`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""


class RowBatches(ScoringBatches):
    """Full batches of rows, reshuffled each time round."""

    def __init__(self, rows: Any, collate: Callable[[list[Any]], Any], size: int, seed: int) -> None:
        """Prepare.

        Args:
            rows: has `len` and takes numbers, as a data set that Trainer trains on.
            collate: makes a batch of a list of rows.
            size: examples in a batch; what is left over in a round is left out.
            seed: of the order.

        Raises:
            DataError: fewer rows than one batch.

        """
        if len(rows) < size:
            raise DataError(
                f"the scoring set has {len(rows)} examples, less than one batch of {size}; give more, or lower "
                "scoring_batch_size"
            )
        self.rows, self.collate, self.size, self.seed = rows, collate, size, seed
        self.examples = len(rows)
        self._content: str | None = None
        self._order: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.rows) // self.size

    @property
    def is_single(self) -> bool:
        """Whether one batch takes all rows; of more rows each round draws others."""
        return len(self.rows) == self.size

    def batch(self, number: int, device: torch.device) -> Batch:
        """Batch `number`, put together by `collate` without a draw from training's random streams."""
        time_round, start = number // len(self), number % len(self) * self.size
        if self._order is None or self._order[0] != time_round:
            order = list(range(len(self.rows)))
            random.Random(f"{self.seed}/scoring batches/{time_round}").shuffle(order)
            self._order = time_round, order
        chosen = self._order[1][start : start + self.size]
        with _streams(None, f"{self.seed}/collated/{number}"):
            many = getattr(self.rows, "__getitems__", None)
            return send_to_device(
                self.collate(many(chosen) if many is not None else [self.rows[k] for k in chosen]), device
            )

    def state_dict(self) -> dict[str, Any]:
        """A sum of all rows, worked out once."""
        if self._content is None:
            self._content = content_sum(self.rows)
        return {"rows": self._content}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of other rows.

        Raises:
            TrainingError: these are not the rows of the checkpoint.

        """
        if state != self.state_dict():
            raise TrainingError(
                "scoring_data has other rows than when the checkpoint was written; give the same in the same order, or start anew"
            )


class LoaderBatches(ScoringBatches):
    """The batches of a DataLoader, in its order, again and again; random streams of its own for each round.

    The same in each of several processes, also of a loader that accelerate has prepared.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        """Prepare.

        Raises:
            DataError: it can be passed through only once.

        """
        if isinstance(loader, Iterator):  # iter(loader) would draw from training's random streams
            raise DataError(
                f"scoring_data is {type(loader).__name__}, which can be passed through only once; give rows, or a DataLoader"
            )
        # accelerate's loader tells training that its own has not ended yet, and gives each of several processes a part.
        self.loader: Any = whole_loader(loader) if process_count() > 1 else getattr(loader, "base_dataloader", loader)
        if isinstance(self.loader, DataLoader):
            # With persistent workers a loader has one iterator, which others (an evaluation) would set back.
            self.loader = copy.copy(self.loader)
        self.seed = seed
        self.rows = getattr(self.loader, "dataset", None)
        self.examples = len(self.rows) if hasattr(self.rows, "__len__") else None
        self._length: int | None = None
        self._last: Any = None
        self._start(0)

    def __len__(self) -> int:
        if self._length is None:
            try:
                self._length = len(self.loader)
            except TypeError:  # an iterable, or a loader of one
                with _streams(None, f"{self.seed}/scoring loader/length"):
                    self._length = sum(1 for _ in self.loader)
        return self._length

    @property
    def is_single(self) -> bool:
        """Whether the loader says that it has one batch."""
        try:
            return len(self.loader) == 1
        except TypeError:
            return False

    def batch(self, number: int, device: torch.device) -> Batch:
        """Batch `number` of all rounds together."""
        if number < self._next:
            self._start(0 if self._length is None else number // self._length)
        while self._next <= number:
            self._last = self._following()
            self._next += 1
        return send_to_device(self._last, device)

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch, and a sum of the last one."""
        return {"next": self._next, "last": None if self._last is None else checksum(values_in(self._last))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass through to the same place.

        Raises:
            TrainingError: the loader gives other batches than before.

        """
        if "next" not in state:
            raise TrainingError(
                "the checkpoint was written with rows as scoring_data, and this is a loader; give the same rows"
            )
        if state["next"]:
            self.batch(state["next"] - 1, torch.device("cpu"))
        if state["last"] != self.state_dict()["last"]:
            raise TrainingError(
                "the scoring loader gives other batches than when the checkpoint was written; give the same data in the same "
                "order (a loader that shuffles by a generator of its own does not), or rows"
            )

    def _start(self, time_round: int) -> None:
        self._round, self._next = time_round, 0 if self._length is None else time_round * self._length
        self._in_round = 0
        self._iterator: Iterator[Any] | None = None
        if isinstance(self.loader, DataLoader):
            self.loader._iterator = None
        self._own: RandomStreams | None = None
        self._last = None

    def _following(self) -> Any:
        while True:
            with _streams(self._own, f"{self.seed}/scoring loader/{self._round}"):
                if self._iterator is None:
                    self._iterator = iter(self.loader)
                found = next(self._iterator, None)
                self._own = RandomStreams.now(_NO_MODEL)
            if found is not None:
                self._in_round += 1
                return found
            if not self._in_round:
                again = "is passed through already, and gives nothing more" if self._round else "gives no batch"
                raise DataError(f"the scoring set {again}; give rows, or a DataLoader with at least one batch")
            self._length = self._in_round
            self._start(self._round + 1)


_NO_MODEL = nn.Module()


@contextmanager
def _streams(start: RandomStreams | None, seed: str) -> Iterator[None]:
    """Draw from `start`, or from streams of this seed; training's are as before afterwards."""
    with random_streams(_NO_MODEL, start):
        if start is None:
            number = random.Random(seed).getrandbits(32)
            random.seed(number)
            np.random.seed(number)
            torch.default_generator.manual_seed(number)
        yield
