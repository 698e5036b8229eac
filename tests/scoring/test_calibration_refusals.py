"""What a calibration pass refuses, and in which words."""

import pytest
import torch
from tests.conftest import random_batch
from tests.scoring.calibration_cases import QUANTITIES, batches_of, make
from torch import nn

from lorank.errors import DataError, ScoresError
from lorank.scoring.calibration import Quantity, calibrate
from lorank.targets import find_targets


def test_an_empty_loader() -> None:
    with pytest.raises(DataError, match="gave no batch"):
        calibrate(make("encoder"), find_targets(make("encoder")), [], "fisher")


@pytest.mark.parametrize("quantity", ["fisher", "kfac", "gradient", "hutchinson"])
def test_no_labels_where_a_loss_is_needed(quantity: Quantity) -> None:
    model = make("encoder")
    batch = {k: v for k, v in random_batch().items() if k != "labels"}
    with pytest.raises(DataError, match=r"no labels .*estimator='gram'"):
        calibrate(model, find_targets(model), [batch], quantity)


def test_no_labels_are_fine_for_gram() -> None:
    model = make("encoder")
    batch = {k: v for k, v in random_batch().items() if k != "labels"}
    assert calibrate(model, find_targets(model), [batch], "gram").examples == 4


@pytest.mark.parametrize("quantity", ["fisher", "hutchinson"])
def test_all_labels_masked(quantity: Quantity) -> None:
    model, batches = make("decoder"), batches_of("decoder", 4, 2)
    for batch in batches:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(DataError, match="not one label"):
        calibrate(model, find_targets(model), batches, quantity)


def test_one_batch_of_masked_labels_counts_for_nothing() -> None:
    model, batches = make("decoder"), batches_of("decoder", 4, 2)
    alone = calibrate(model, find_targets(model), batches[:1], "fisher")
    batches[1]["labels"] = torch.full_like(batches[1]["labels"], -100)
    both = calibrate(model, find_targets(model), batches, "fisher")
    torch.testing.assert_close(both.columns, alone.columns)
    torch.testing.assert_close(both.targets, alone.targets)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_activations_that_are_not_finite_name_the_first_module(quantity: Quantity) -> None:
    model = make("decoder")
    with torch.no_grad():
        model.get_submodule("model.layers.1.self_attn.o_proj").weight[0, 0] = torch.inf
    with pytest.raises(ScoresError, match=r"inputs of 'model\.layers\.1\.mlp\.gate_proj' are not finite"):
        calibrate(model, find_targets(model), batches_of("decoder", 4, 2), quantity)


def test_a_loss_that_is_not_finite() -> None:
    model = make("encoder")
    with torch.no_grad():
        model.get_submodule("classifier").weight[0, 0] = torch.nan
    with pytest.raises(ScoresError, match="the loss of a calibration batch is not finite"):
        calibrate(model, find_targets(model), [random_batch()], "fisher")


def test_a_module_that_never_ran() -> None:
    model = make("encoder")
    model.bert.encoder.layer[0].spare = nn.Linear(4, 4)
    with pytest.raises(ScoresError, match=r"layer\.0\.spare' never ran"):
        calibrate(model, find_targets(model), [random_batch()], "gram")


def test_rows_that_belong_to_no_example() -> None:
    model = make("encoder")
    dense = model.bert.encoder.layer[0].intermediate.dense
    model.bert.encoder.layer[0].intermediate.dense = _Routed(dense)  # type: ignore[assignment]
    with pytest.raises(ScoresError, match="cannot be told apart by example"):
        calibrate(model, find_targets(model, [r"dense.inner"]), [random_batch()], "fisher")


def test_equal_lengths_that_fill_every_position() -> None:
    ids = torch.randint(5, 31, (2, 32))
    with pytest.raises(DataError, match="fill all 32 positions"):
        calibrate(
            make("encoder-decoder"),
            find_targets(make("encoder-decoder")),
            [{"input_ids": ids, "labels": ids}],
            "gram",
        )


def test_a_batch_that_is_no_mapping() -> None:
    with pytest.raises(DataError, match="tuple; give mappings"):
        calibrate(make("encoder"), find_targets(make("encoder")), [(torch.zeros(1),)], "gram")  # type: ignore[list-item]


class _Routed(nn.Module):
    """Some tokens only, of no telling which example: as the experts of a mixture see them."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*x.shape[:-1], self.inner.out_features, dtype=x.dtype)
        chosen = torch.zeros(x.shape[:-1], dtype=torch.bool)
        chosen.view(-1)[:9] = True
        out[chosen] = self.inner(x[chosen])
        return out
