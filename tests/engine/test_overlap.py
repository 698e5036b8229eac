"""Examples that two data sets share, by the inputs that models read."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import TensorDataset

from lorank.engine.overlap import shared_examples, values_in

IDS = np.random.default_rng(0).integers(0, 1000, (12, 5))


def as_dataset(ids: np.ndarray) -> Dataset:
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": list(range(len(ids)))})


FORMS: dict[str, Any] = {
    "dataset": as_dataset,
    "torch dataset": lambda ids: as_dataset(ids).with_format("torch"),
    "numpy dataset": lambda ids: as_dataset(ids).with_format("numpy"),
    "list": lambda ids: [{"input_ids": row.tolist(), "labels": k} for k, row in enumerate(ids)],
    "tensors in a list": lambda ids: [{"input_ids": torch.tensor(row), "mask": torch.ones(5)} for row in ids],
}


@pytest.mark.parametrize("training", FORMS)
@pytest.mark.parametrize("scoring", FORMS)
def test_counted_by_content_in_every_form(scoring: str, training: str) -> None:
    """Whatever labels and order are."""
    held_out = np.concatenate([IDS[8:10][::-1], IDS[10:] + 1000])
    assert shared_examples(FORMS[scoring](held_out), FORMS[training](IDS[:10])) == 2
    assert shared_examples(FORMS[scoring](IDS[10:]), FORMS[training](IDS[:10])) == 0


def test_rows_that_are_tuples_of_tensors() -> None:
    whole = TensorDataset(torch.tensor(IDS), torch.arange(12))
    assert shared_examples(whole, whole) == 12
    part = TensorDataset(torch.tensor(IDS[:5]), torch.arange(5))
    assert shared_examples(part, whole) == 5


def test_an_example_that_is_twice_in_the_scoring_set_counts_twice() -> None:
    assert shared_examples(as_dataset(IDS[[0, 0, 1]]), as_dataset(IDS[:1])) == 2


def test_inputs_decide_and_not_what_else_the_rows_hold() -> None:
    texts = Dataset.from_dict({"text": ["one", "two"], "label": [0, 0], "index": [7, 8]})
    other = Dataset.from_dict({"text": ["two", "three"], "label": [1, 0], "extra": [7, 8]})
    assert shared_examples(texts, other) == 1
    # Without a name that is known, by all that both hold.
    own = [{"left": 1, "right": 2}, {"left": 1, "right": 3}]
    assert shared_examples(own, [{"left": 1, "right": 3, "more": 0}]) == 1


@pytest.mark.parametrize(
    ("scoring", "training"),
    [
        (as_dataset(IDS), None),
        (as_dataset(IDS), iter([])),
        (None, as_dataset(IDS)),
        (as_dataset(IDS), []),
        (as_dataset(IDS), [{"other": 1}]),
        (as_dataset(IDS), {"input_ids": IDS}),
    ],
)
def test_none_where_it_cannot_be_looked_at(scoring: Any, training: Any) -> None:
    assert shared_examples(scoring, training) is None


def test_values_in_is_plain_data() -> None:
    data = {"a": torch.tensor([1, 2]), "b": (np.array([[0.5]]), [True, None, "x"]), 3: {"c": object}}
    found = values_in(data)
    assert found["a"] == [1, 2]
    assert found["b"] == [[[0.5]], [True, None, "x"]]
    assert found["3"] == {"c": repr(object)}


def test_a_training_set_of_usual_size_takes_a_moment() -> None:
    """2.5 million token ids: about a second on one core; ten times that is something that has gone wrong."""
    ids = np.random.default_rng(1).integers(0, 30_000, (20_000, 128))
    training, scoring = as_dataset(ids), as_dataset(ids[:50])
    began = time.process_time()
    assert shared_examples(scoring, training) == 50
    assert time.process_time() - began < 6
