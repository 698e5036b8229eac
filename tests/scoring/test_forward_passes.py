"""Passes that end at the output layer see what whole passes see, and only where nothing is behind it."""

from typing import Any

import pytest
import torch
from tests.scoring.calibration_cases import batches_of, make
from torch import nn

from lorank.scoring.calibration import CalibrationSums, calibrate
from lorank.scoring.eva import principal_inputs
from lorank.scoring.forward_passes import ForwardPasses
from lorank.targets import Target, find_targets


class Calls:
    """Counts how often a module computes."""

    def __init__(self, module: nn.Module) -> None:
        self.made = 0
        module.register_forward_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.made += 1


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForwardPasses, "short", False)


def assert_equal(found: CalibrationSums, expected: CalibrationSums) -> None:
    assert found.columns.keys() == expected.columns.keys()
    for name, columns in expected.columns.items():
        assert torch.equal(found.columns[name], columns), name
        assert torch.equal(found.tokens[name], expected.tokens[name])
    assert torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize("kind", ["decoder", "gpt2", "encoder-decoder"])
def test_all_but_the_first_pass_leave_out_the_output_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = make(kind), batches_of(kind, 6, 2)
    heads = Calls(model.get_output_embeddings())
    short = calibrate(model, find_targets(model), batches, "gram")
    assert heads.made == 1
    whole(monkeypatch)
    assert_equal(short, calibrate(model, find_targets(model), batches, "gram"))
    assert heads.made == 1 + 3


def test_principal_inputs_take_short_passes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = make("decoder").float(), batches_of("decoder", 12, 4)
    heads = Calls(model.get_output_embeddings())
    short, _ = principal_inputs(model, find_targets(model), batches, 4)
    assert heads.made == 1
    whole(monkeypatch)
    for name, (directions, shares) in principal_inputs(model, find_targets(model), batches, 4)[0].items():
        assert torch.equal(short[name][0], directions)
        assert torch.equal(short[name][1], shares)


def test_an_output_layer_that_is_a_target_is_scored_on_every_batch() -> None:
    model, batches = make("decoder"), batches_of("decoder", 6, 2)
    heads = Calls(model.lm_head)
    sums = calibrate(model, [*find_targets(model), Target("lm_head", 16, 32)], batches, "gram")
    assert heads.made == 3
    assert int(sums.tokens["lm_head"].sum()) == sum(int(batch["attention_mask"].sum()) for batch in batches)


class WithLayerBehind(nn.Module):
    """A layer works on what the output layer gives, but not in the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.head, self.behind = nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.calls = 0

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        found = self.head(self.before(x))
        return self.behind(found) if self.calls > 1 else found


def test_a_target_behind_the_output_layer_is_seen_as_soon_as_it_runs() -> None:
    model = WithLayerBehind()
    targets = [Target("before", 4, 4), Target("behind", 5, 2)]
    batches = [{"x": torch.randn(2, 3, 4)} for _ in range(4)]
    sums = calibrate(model, targets, batches, "gram")
    assert int(sums.tokens["before"].sum()) == 4 * 6
    assert int(sums.tokens["behind"].sum()) == 3 * 6


def test_a_loss_of_the_users_calls_the_model_as_often_as_it_likes() -> None:
    model, batches = make("decoder"), batches_of("decoder", 6, 2)
    heads = Calls(model.lm_head)

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(2):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return torch.zeros(()), torch.ones(2)

    calibrate(model, find_targets(model), batches, "gram", loss=loss)
    assert heads.made == 2 * 3
