"""Which examples a process is given, and what sums of several processes become; without any process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, IterableDatasetShard
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lorank.errors import DataError
from lorank.scoring import calibration_sums
from lorank.scoring.calibration_sums import CalibrationSums
from lorank.scoring.split import numbered_batches
from lorank.scoring.split.numbered_batches import NumberedBatches
from lorank.scoring.split.whole_loader import whole_loader


def batch(*numbers: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(numbers)[:, None]}


BATCHES = [batch(0, 1, 2), batch(3), batch(4, 5), batch(6, 7, 8), batch(9)]


def process(monkeypatch: pytest.MonkeyPatch, index: int, count: int) -> None:
    """Have one of several processes read the batches, of which all others answer as it does."""
    monkeypatch.setattr(numbered_batches, "process_count", lambda: count)
    monkeypatch.setattr(numbered_batches, "process_index", lambda: index)


def test_gradients_pass_through_batches_of_inference_mode() -> None:
    with torch.inference_mode():
        made = {"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}
    ((_, _, given),) = NumberedBatches([made])
    weight = torch.ones(3, requires_grad=True)
    (given["input_ids"] @ weight).sum().backward()  # torch refuses to save what was made there
    assert weight.grad is not None
    ((_, _, same),) = NumberedBatches([BATCHES[0]])
    assert same is BATCHES[0]


def test_one_process_is_given_all() -> None:
    numbered = NumberedBatches(BATCHES)
    assert [(first, count) for first, count, _ in numbered] == [(0, 3), (3, 1), (4, 2), (6, 3), (9, 1)]
    assert (numbered.batches, numbered.examples) == (5, 10)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_have_every_example_once_under_its_own_number(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for index in range(count):
        process(monkeypatch, index, count)
        numbered = NumberedBatches(iter(BATCHES))
        for first, size, one in numbered:
            assert one["input_ids"][:, 0].tolist() == list(range(first, first + size))
            seen += range(first, first + size)
        assert (numbered.batches, numbered.examples) == (5, 10)  # also of a process without a share
    assert sorted(seen) == list(range(10))


def test_all_batches_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    process(monkeypatch, 1, 2)
    assert [first for first, _, _ in NumberedBatches(BATCHES, shared=False)] == [0, 3, 4, 6, 9]


def test_reading_draws_nothing_from_the_callers_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    process(monkeypatch, 0, 2)
    loader: Any = DataLoader(range(8), batch_size=2, shuffle=True, collate_fn=lambda rows: batch(*rows))  # type: ignore[arg-type]
    before = torch.get_rng_state()
    assert sum(count for _, count, _ in NumberedBatches(loader)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_other_batches_in_another_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    process(monkeypatch, 0, 2)
    numbered = NumberedBatches(BATCHES)
    assert len(list(numbered)) == 3
    monkeypatch.setattr(numbered_batches, "gathered", lambda digest: [digest, b"another"])
    with pytest.raises(DataError, match="the processes read other calibration batches"):
        numbered.check_same()
    with pytest.raises(DataError, match="the processes read other calibration batches"):
        NumberedBatches(BATCHES)


def test_no_batch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2):
        process(monkeypatch, 0, count)
        with pytest.raises(DataError, match="gave no batch; give at least one; an iterator gives"):
            list(NumberedBatches(iter([])))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        yield from range(11)


def shard(index: int, *, split: bool, even: bool) -> DataLoaderShard:
    """What accelerate makes of a loader of 11 examples in batches of 4, for one of two processes."""
    sampler = BatchSampler(SequentialSampler(range(11)), 4, drop_last=False)
    parts = BatchSamplerShard(sampler, 2, index, split_batches=split, even_batches=even)
    return DataLoaderShard(range(11), batch_sampler=parts, collate_fn=list)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_accelerates_split_is_taken_back(split: bool, even: bool) -> None:
    wholes = [list(whole_loader(shard(index, split=split, even=even))) for index in (0, 1)]
    size = 2 if split else 4
    assert wholes[0] == wholes[1] == [list(range(k, min(k + size, 11))) for k in range(0, 11, size)]
    if even:  # what a process is given repeats the first examples at the end
        assert sum(len(each) for index in (0, 1) for each in shard(index, split=split, even=even)) > 11


def test_a_stream_and_a_distributed_sampler_too() -> None:
    parts = IterableDatasetShard(Stream(), batch_size=4, num_processes=2, process_index=1)  # type: ignore[arg-type]
    assert list(whole_loader(DataLoaderShard(parts, batch_size=4, collate_fn=list)))[-1] == [8, 9, 10]
    sampler: Any = DistributedSampler(range(11), 2, 1, shuffle=False)  # type: ignore[arg-type]
    loader: Any = DataLoader(range(11), batch_size=4, sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
    assert list(whole_loader(loader)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_what_cannot_be_taken_back_is_refused_and_all_else_is_left() -> None:
    assert whole_loader(BATCHES) is BATCHES
    with pytest.raises(DataError, match=r"cannot be told \(its examples are drawn by BatchSampler of list\); give the"):
        whole_loader(DataLoaderShard(list(range(11)), batch_size=4, collate_fn=list))


def test_sums_of_processes_are_put_in_the_places_of_their_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes by hand: what each would hand to the reduction is added up as it adds up."""
    handed: list[dict[str, torch.Tensor]] = []

    def added_up(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        handed.append(tensors)
        names = dict.fromkeys(name for each in handed for name in each)
        return {name: sum(each[name].double() for each in handed if name in each) for name in names}  # type: ignore[misc]

    monkeypatch.setattr(calibration_sums, "added_up", added_up)
    notes = [(None, {}), ("because", {"b": "why"})]
    monkeypatch.setattr(calibration_sums, "gathered", lambda _: notes)
    one, two = (CalibrationSums(torch.tensor([2.0, 1.0], dtype=torch.float64)) for _ in range(2))
    one.columns, two.columns = {"a": torch.ones(2, 3)}, {"a": torch.ones(2, 3), "b": torch.ones(2, 1)}
    one.counts, one.numbers = torch.tensor([5.0, 7.0], dtype=torch.float64), torch.tensor([0, 3])
    two.counts, two.numbers = torch.tensor([6.0], dtype=torch.float64), torch.tensor([2])  # example 1 has no target
    one.traces, two.traces = {"a": torch.tensor([[1.0, 4.0]])}, {"a": torch.tensor([[3.0]]), "b": torch.tensor([[9.0]])}
    one.over_processes(4)
    both = two.over_processes(4)
    assert both.targets.tolist() == [4, 2]
    assert (both.columns["a"].tolist(), both.columns["b"].tolist()) == ([[2.0] * 3] * 2, [[1.0]] * 2)
    assert both.counts.tolist() == [5, 6, 7]
    assert (both.traces["a"].tolist(), both.traces["b"].tolist()) == ([[1, 3, 4]], [[0, 9, 0]])
    assert (both.alone, both.left_out, both.examples) == ("because", {"b": "why"}, 4)
