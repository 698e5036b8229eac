"""A loader that gives each process a part of the batches, as accelerate makes them, turned back into the one of all batches."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from lorank.errors import DataError

# Of a DataLoader, what has no part in which examples are in which batch.
_KEPT = (
    *("collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    "prefetch_factor",
)


def whole_loader(loader: Iterable[Any]) -> Any:
    """The batches of all processes, in the order of one; each example once, without those that are repeated to fill up.

    Taken back are what `accelerator.prepare` makes of a DataLoader, and torch's `DistributedSampler`. Where accelerate splits
    each batch (`split_batches`), the parts stay as small as they were. The order is that of accelerate's next round;
    neither its count of rounds nor what it tells of the end of training is changed. Anything else is returned as it is.

    Raises:
        DataError: accelerate has split it in a way that cannot be taken back.

    """
    from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, DataLoaderShard, IterableDatasetShard
    from accelerate.utils import synchronize_rng_states

    if not hasattr(loader, "base_dataloader"):
        sampler = getattr(loader, "sampler", None)
        return _undistributed(loader, sampler) if isinstance(sampler, DistributedSampler) else loader
    inner: Any = loader.base_dataloader
    indices = inner.sampler if inner.batch_sampler is None else inner.batch_sampler
    if not isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
        raise _unknown(loader, type(loader).__name__)
    loader.set_epoch(loader.iteration)
    if isinstance(loader, DataLoaderDispatcher):
        parts = loader.state.num_processes if loader.split_batches else 1
        if isinstance(inner.dataset, IterableDataset):
            return _remade(
                inner, inner.dataset, batch_size=max(1, inner.batch_size // parts), drop_last=inner.drop_last
            )
        return _by_indices(inner, indices, parts)
    # Each process has drawn a seed of its own for the order; accelerate makes them one where a round begins.
    if loader.synchronized_generator is not None:
        synchronize_rng_states(["generator"], loader.synchronized_generator)
    if isinstance(inner.dataset, IterableDatasetShard):
        return _remade(inner, inner.dataset.dataset, batch_size=inner.batch_size, drop_last=inner.drop_last)
    if isinstance(indices, BatchSamplerShard):
        return _by_indices(inner, indices.batch_sampler, indices.num_processes if indices.split_batches else 1)
    raise _unknown(loader, f"its examples are drawn by {type(indices).__name__} of {type(inner.dataset).__name__}")


class _Parts(Sampler[list[int]]):
    """Batches of a batch sampler in equal parts."""

    def __init__(self, batches: Iterable[list[int]], size: int) -> None:
        self.batches, self.size = batches, size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            for start in range(0, len(batch), self.size):
                yield batch[start : start + self.size]


def _by_indices(inner: Any, indices: Any, parts: int) -> DataLoader[Any]:
    if parts > 1:
        indices = _Parts(indices, max(1, indices.batch_size // parts))
    if inner.batch_sampler is None:  # the sampler itself draws batches
        return _remade(inner, inner.dataset, sampler=indices, batch_size=None)
    return _remade(inner, inner.dataset, batch_sampler=indices)


def _undistributed(loader: Any, sampler: DistributedSampler[Any]) -> DataLoader[Any]:
    whole = DistributedSampler[Any](sampler.dataset, num_replicas=1, rank=0, shuffle=sampler.shuffle, seed=sampler.seed)
    whole.set_epoch(sampler.epoch)
    return _remade(loader, loader.dataset, sampler=whole, batch_size=loader.batch_size)


def _remade(inner: Any, dataset: Any, **how: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **how, **{key: getattr(inner, key) for key in _KEPT})


def _unknown(loader: Any, why: str) -> DataError:
    return DataError(
        f"the loader gives each process a part of the examples, and which part cannot be told ({why}); give the loader as it "
        "was before accelerator.prepare, which lorank splits itself"
    )
