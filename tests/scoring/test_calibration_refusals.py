"""What a calibration pass refuses, and in which words."""

from typing import Any

import pytest
import torch
from tests.conftest import random_batch, tiny_config
from tests.scoring.calibration_cases import QUANTITIES, batches_of, make
from torch import nn
from transformers import BertForSequenceClassification

import lorank
from lorank.errors import DataError, LorankWarning, PlanError, ScoresError
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


def test_modules_that_never_ran_are_left_out_by_name() -> None:
    model = make("encoder")
    for layer in model.bert.encoder.layer:
        layer.spare = nn.Linear(4, 4)
    with pytest.warns(
        LorankWarning, match=r"2 of 14 modules .*layer\.0\.spare', .*layer\.1\.spare': never ran"
    ) as warned:
        scores = lorank.score(model, [random_batch()])
    assert len(warned) == 1
    assert len(scores.scores) == 12
    assert scores.provenance["left_out"] == [f"bert.encoder.layer.{k}.spare" for k in range(2)]
    # The plan is still for this model, and for no other.
    lorank.allocate(scores, "r=1").check_model(model)
    with pytest.raises(PlanError, match="for another model"):
        lorank.allocate(scores, "r=1").check_model(BertForSequenceClassification(tiny_config(num_hidden_layers=3)))


@pytest.mark.parametrize("quantity", ["gram", "fisher"])
def test_layers_that_return_no_tensor_are_left_out(quantity: Quantity) -> None:
    model = make("encoder")
    targets = find_targets(model)
    model.bert.encoder.layer[0].intermediate.dense = _Pair(16, 32).double()
    with pytest.warns(
        LorankWarning, match=r"1 of 12 .*layer\.0\.intermediate\.dense': takes or returns _Both, not one"
    ):
        sums = calibrate(model, targets, [random_batch()], quantity)
    assert len(sums.columns) == 11


def test_no_layer_that_can_be_scored() -> None:
    model = make("encoder")
    model.bert.encoder.layer[0].spare = nn.Linear(4, 4)
    with pytest.raises(ScoresError, match=r"no target can be scored: 'bert\.encoder\.layer\.0\.spare': never ran"):
        calibrate(model, find_targets(model, ["spare"]), [random_batch()], "gram")


@pytest.mark.parametrize("quantity", ["gram", "fisher", "kfac", "gradient"])
def test_tokens_that_are_routed_to_a_layer_are_those_of_one_example_at_a_time(quantity: Quantity) -> None:
    model = make("encoder").eval()
    layer = model.bert.encoder.layer[0]
    layer.experts = nn.ModuleList([layer.intermediate.dense, nn.Linear(16, 32).double()])
    layer.intermediate.dense = _Routed(layer.experts)  # type: ignore[assignment]
    batch = random_batch(size=3)
    batch["attention_mask"][1, 5:] = 0
    lengths = [7, 5, 7]
    alone = [{k: v[row : row + 1] for k, v in batch.items()} for row in range(3)]
    alone = [{k: v[:, :n] if v.ndim == 2 else v for k, v in one.items()} for one, n in zip(alone, lengths, strict=True)]
    targets = find_targets(model, r".*experts\.\d+")
    together, each = (calibrate(model, targets, batches, quantity) for batches in ([batch], alone))
    assert together.alone is not None
    assert "routed" in together.alone
    assert together.examples == 3
    torch.testing.assert_close(together.columns, each.columns)
    if quantity == "gram":
        assert sum(int(tokens.sum()) for tokens in together.tokens.values()) == sum(lengths)
    if quantity == "fisher":
        for number, expert in enumerate(layer.experts):
            expected = torch.zeros(16, dtype=torch.float64)
            for one in alone:
                (gradient,) = torch.autograd.grad(model(**one).loss, [expert.weight])
                expected += gradient.square().sum(0)
            torch.testing.assert_close(together.columns[targets[number].name].sum(0), expected)


def test_equal_lengths_that_fill_every_position() -> None:
    model = make("encoder-decoder")
    ids = torch.randint(5, 31, (2, 32))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    labels = ids.clone()
    labels[0, 25:] = -100
    mask[0, -1] = 1
    tokens = calibrate(
        model, find_targets(model), [{"input_ids": ids, "attention_mask": mask, "labels": labels}], "gram"
    ).tokens
    assert int(tokens["model.encoder.layers.0.fc1"].sum()) == 52
    assert int(tokens["model.decoder.layers.0.fc1"].sum()) == 57


def test_a_batch_that_is_no_mapping() -> None:
    with pytest.raises(DataError, match="tuple; give mappings"):
        calibrate(make("encoder"), find_targets(make("encoder")), [(torch.zeros(1),)], "gram")  # type: ignore[list-item]


def test_a_loader_that_is_used_up() -> None:
    model = make("encoder")
    once = iter([random_batch()])
    calibrate(model, find_targets(model), once, "gram")
    with pytest.raises(DataError, match=r"gave no batch.*an iterator gives its batches once"):
        calibrate(model, find_targets(model), once, "gram")


class _Pair(nn.Linear):
    """Returns a tuple to a caller who asks for it, as Llama 4's router does."""

    def forward(self, x: torch.Tensor) -> Any:
        return _Both((super().forward(x), x))


class _Both(tuple):
    """What BERT's activation takes for a tensor."""

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*(one[0] if isinstance(one, _Both) else one for one in args), **(kwargs or {}))


class _Routed(nn.Module):
    """Every token goes through one of two experts, by the sign of its first number."""

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = list(experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*x.shape[:-1], 32, dtype=x.dtype)
        first = x[..., 0] > 0
        for chosen, expert in ((first, self.experts[0]), (~first, self.experts[1])):
            out[chosen] = expert(x[chosen])
        return out
