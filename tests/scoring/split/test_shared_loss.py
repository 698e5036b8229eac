"""A batch that several processes pass together: here threads, which gather as processes do."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from lorank.errors import DataError
from lorank.scoring.split import shared_loss
from lorank.scoring.split.shared_loss import Share, SharedLoss

Loss = Callable[[nn.Module, Any], torch.Tensor]
LABELS = torch.tensor([[4, -100, -100], [5, 6, 7], [8, 9, -100], [1, 2, 3], [2, 2, 2]])
BATCH = {"input_ids": torch.arange(15).view(5, 3), "labels": LABELS}


@pytest.fixture
def in_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Call a function with 0 and 1 side by side."""
    own, barrier = threading.local(), threading.Barrier(2, timeout=20)
    told: list[Any] = [None, None]

    def gathered(value: Any) -> list[Any]:
        told[own.index] = value
        barrier.wait()
        found = list(told)
        barrier.wait()
        return found

    for name, fake in (
        ("process_count", lambda: 2),
        ("process_index", lambda: getattr(own, "index", 0)),
        ("gathered", gathered),
    ):
        monkeypatch.setattr(shared_loss, name, fake)
    monkeypatch.setattr(shared_loss, "raised_in_all", nullcontext)
    monkeypatch.setattr(shared_loss, "undisturbed", lambda _: nullcontext())

    def call(function: Callable[[int], Any]) -> list[Any]:
        found: list[Any] = [None, None]

        def one(index: int) -> None:
            own.index = index
            try:
                found[index] = function(index)
            except DataError as error:
                found[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return call


def of_tokens(model: nn.Module, batch: Any) -> torch.Tensor:
    """A mean over targets, as a language model's."""
    return batch["input_ids"][batch["labels"] != -100].double().mean()


def of_all_processes(model: nn.Module, batch: Any) -> torch.Tensor:
    """A Trainer's, which divides by the targets of all processes together, and multiplies by their number."""
    whole = len(batch["labels"]) == len(LABELS)
    items = (batch["labels"] != -100).sum() * 2 if whole else (LABELS != -100).sum()
    return 2 * batch["input_ids"][batch["labels"] != -100].double().sum() / items


@pytest.mark.parametrize(("loss", "way"), [(of_tokens, "targets"), (of_all_processes, "processes")])
def test_shares_together_are_the_batch(loss: Loss, way: str, in_two: Any) -> None:
    model = nn.Module()

    def made(index: int) -> tuple[SharedLoss, Share]:
        one = SharedLoss(loss)
        return one, one.share(model, BATCH)

    (first, one), (second, two) = in_two(made)
    assert first.ways == second.ways == (way,)
    assert [len(share.batch["labels"]) for share in (one, two)] == [2, 3]
    assert one.is_part
    together = sum(share.factor * float(loss(model, share.batch)) for share in (one, two)) / 2
    assert together == pytest.approx(float(loss(model, BATCH)))


def test_a_loss_that_is_no_mean_over_examples_is_not_divided(in_two: Any, caplog: pytest.LogCaptureFixture) -> None:
    def contrastive(model: nn.Module, batch: Any) -> torch.Tensor:
        return torch.tensor(float(len(batch["labels"]))).log()

    for share in in_two(lambda _: SharedLoss(contrastive).share(nn.Module(), BATCH)):
        assert share == Share(BATCH)
        assert share.averaged([LABELS]) == [LABELS]
    assert "is no mean over its examples" in caplog.text


def test_what_cannot_be_divided_is_passed_whole(in_two: Any) -> None:
    alone = {"input_ids": BATCH["input_ids"][:1], "labels": LABELS[:1]}
    empty = {**BATCH, "labels": torch.where(torch.arange(5)[:, None] < 2, LABELS, -100)}
    for batch in (alone, empty, {"rows": "text"}):
        assert all(
            share == Share(batch) for share in in_two(lambda _, b=batch: SharedLoss(of_tokens).share(nn.Module(), b))
        )
    assert not SharedLoss(of_tokens, divided=False).ways


def test_other_batches_in_other_processes_are_refused(in_two: Any) -> None:
    errors = in_two(lambda index: SharedLoss(of_tokens).share(nn.Module(), {**BATCH, "more": torch.tensor([index])}))
    assert all("the processes have different scoring batches" in str(error) for error in errors)
