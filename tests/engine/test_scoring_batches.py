"""Numbered scoring batches: functions of seed and number, whatever is asked for first, and nobody else's random streams."""

import random
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset

from lorank.engine.scoring_batches import LoaderBatches, RowBatches, ScoringBatches
from lorank.errors import DataError, TrainingError
from lorank.scoring.random_streams import RandomStreams

CPU = torch.device("cpu")


def noisy(rows: list[Any]) -> dict[str, Any]:
    """Draws from every stream, as masking for a masked language model does."""
    drawn = random.random() + float(np.random.random()) + float(torch.rand(()))
    return {"number": [int(row["number"]) for row in rows], "drawn": drawn}


def rows(count: int = 11) -> Dataset:
    return Dataset.from_dict({"number": list(range(count))})


def loader(count: int = 11, **options: Any) -> Any:
    given = {"batch_size": 4, "shuffle": True, "collate_fn": noisy, **options}
    return DataLoader(rows(count), **given)  # type: ignore[arg-type]


def test_a_set_of_one_batch_is_known_without_reading_it() -> None:
    assert RowBatches(rows(4), noisy, 4, 0).is_single
    assert not RowBatches(rows(7), noisy, 4, 0).is_single  # each round draws other four
    assert [LoaderBatches(loader(count), 0).is_single for count in (3, 4, 5)] == [True, True, False]
    assert not LoaderBatches(Unsized(), 0).is_single


class Stream(IterableDataset[Any]):
    """Examples without a length, that draw."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(6):
            yield {"number": number, "drawn": random.random()}


class Unsized:
    def __iter__(self) -> Iterator[Any]:
        return iter(loader())


def streams() -> Any:
    now = RandomStreams.now(torch.nn.Module())
    return now.python, now.numpy[1].tolist(), now.cpu.tolist()


MAKERS: dict[str, Any] = {
    "rows": lambda seed=5: RowBatches(rows(), noisy, 4, seed),
    "list": lambda seed=5: RowBatches(list(rows()), noisy, 4, seed),
    "loader": lambda seed=5: LoaderBatches(loader(), seed),
    "workers": lambda seed=5: LoaderBatches(loader(num_workers=1), seed),
    "iterable": lambda seed=5: LoaderBatches(DataLoader(Stream(), batch_size=2, collate_fn=noisy), seed),
    "unsized": lambda seed=5: LoaderBatches(Unsized(), seed),
}
COUNTS = {"rows": 2, "list": 2}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_batch_is_a_function_of_seed_and_number(kind: str) -> None:
    straight = MAKERS[kind]()
    expected = [straight.batch(number, CPU) for number in range(8)]
    assert len(straight) == COUNTS.get(kind, 3)
    torch.manual_seed(99)  # whatever training does
    random.seed(99)
    other: ScoringBatches = MAKERS[kind]()
    for number in (7, 0, 3, 3, 6, 1):
        assert other.batch(number, CPU) == expected[number]
    assert [MAKERS[kind](seed=6).batch(number, CPU) for number in range(2)] != expected[:2]


@pytest.mark.parametrize("kind", MAKERS)
def test_every_round_has_every_example_once_and_another_order(kind: str) -> None:
    batches = MAKERS[kind]()
    length = len(batches)
    rounds = [
        [number for k in range(length) for number in batches.batch(k + length * again, CPU)["number"]]
        for again in range(3)
    ]
    for seen in rounds:
        assert len(set(seen)) == len(seen) == {"rows": 8, "list": 8, "iterable": 6}.get(kind, 11)
    if kind != "iterable":
        assert rounds[0] != rounds[1] != rounds[2]


@pytest.mark.parametrize("kind", MAKERS)
def test_trainings_random_streams_are_left_alone(kind: str) -> None:
    batches, before = MAKERS[kind](), streams()
    length = len(batches)
    for number in (*range(length + 1), 0):
        batches.batch(number, CPU)
    batches.load_state_dict(batches.state_dict())
    assert streams() == before


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("asked", [0, 2, 3, 7])
def test_a_state_is_continued(kind: str, asked: int) -> None:
    first, second = MAKERS[kind](), MAKERS[kind]()
    for number in range(asked):
        first.batch(number, CPU)
    second.load_state_dict(first.state_dict())
    for number in range(asked, asked + 5):
        assert second.batch(number, CPU) == first.batch(number, CPU)


def test_a_loader_that_gives_others_is_refused() -> None:
    first = LoaderBatches(loader(), 5)
    first.batch(1, CPU)
    for other in (LoaderBatches(loader(), 6), LoaderBatches(loader(12), 5), LoaderBatches(loader(batch_size=3), 5)):
        with pytest.raises(TrainingError, match="gives other batches than when the checkpoint was written"):
            other.load_state_dict(first.state_dict())


def test_what_gives_no_batch_says_so() -> None:
    with pytest.raises(DataError, match="passed through only once"):
        LoaderBatches(iter(loader()), 0)
    with pytest.raises(DataError, match="gives no batch"):
        LoaderBatches([], 0).batch(0, CPU)
    once = (number for number in range(3))
    hidden = type("Hidden", (), {"__iter__": lambda self: once})()
    batches = LoaderBatches(hidden, 0)
    assert [batches.batch(number, CPU) for number in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="passed through already, and gives nothing more"):
        batches.batch(3, CPU)
    with pytest.raises(DataError, match="11 examples, less than one batch of 12; give more, or lower"):
        RowBatches(rows(), noisy, 12, 0)


def test_what_is_known_of_the_examples() -> None:
    assert MAKERS["rows"]().examples == MAKERS["loader"]().examples == 11
    assert len(MAKERS["loader"]().rows) == 11
    assert MAKERS["iterable"]().examples is None
    assert MAKERS["unsized"]().rows is None


def test_accelerates_loader_is_asked_for_its_own() -> None:
    inner = loader()
    wrapped = type("Wrapped", (), {"base_dataloader": inner, "__iter__": lambda self: iter(())})()
    assert LoaderBatches(wrapped, 5).batch(0, CPU) == LoaderBatches(inner, 5).batch(0, CPU)


def test_tensors_are_moved_wherever_they_are() -> None:
    pair = namedtuple("pair", ["ids", "labels"])
    tensor = torch.ones(2)
    batch = {"a": tensor, "b": [tensor, (tensor, "text")], "c": pair(tensor, 3), "d": {"e": [tensor]}, "f": None}
    meta = LoaderBatches([batch], seed=0).batch(0, torch.device("meta"))
    assert meta["a"].is_meta
    assert meta["b"][0].is_meta
    assert isinstance(meta["b"][1], tuple)
    assert meta["b"][1][0].is_meta
    assert meta["b"][1][1] == "text"
    assert isinstance(meta["c"], pair)
    assert meta["c"].ids.is_meta
    assert meta["c"].labels == 3
    assert meta["d"]["e"][0].is_meta
    assert meta["f"] is None
    assert not tensor.is_meta
