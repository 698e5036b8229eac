import copy

import pytest
import torch
from tests.conftest import random_batch, triplet_model
from torch.optim import SGD, Adafactor, AdamW

from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter
from lorank.errors import LorankWarning


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, keep: dict[str, torch.Tensor] | None = None
) -> list[float]:
    losses = []
    adapter = TripletAdapter.of(model)
    for step in range(steps):
        loss = model(**random_batch(seed=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if keep is not None:
            adapter.switch_off(keep)
        losses.append(loss.item())
    return losses


def test_training_goes_on_as_if_the_dropped_triplets_were_masked() -> None:
    """Weights, AdamW moments and losses: the same as with full-size tensors whose dropped λ is held at zero."""
    model, adapter = triplet_model(rank=4)
    kept = {name: torch.tensor([0, 2])[: number % 3] for number, name in enumerate(adapter.names)}
    mask = {name: torch.isin(torch.arange(4), index) for name, index in kept.items()}
    optimizer = AdamW(adapter.factors("all"), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 3)
    adapter.switch_off(mask)
    masked = copy.deepcopy(model)
    before = model(**random_batch()).logits
    copied = AdamW(TripletAdapter.of(masked).factors("all"), lr=1e-2, weight_decay=0.1)
    copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    shrink(adapter, kept, optimizer)
    assert torch.allclose(model(**random_batch()).logits, before, atol=1e-12)  # no jump
    assert train(model, optimizer, 4) == pytest.approx(train(masked, copied, 4, mask), abs=1e-12)
    for name, small, large in zip(adapter.names, adapter.lambdas, TripletAdapter.of(masked).lambdas, strict=True):
        assert torch.allclose(small, large[kept[name]], atol=1e-12)


def test_memory_is_that_of_a_plain_lora_of_the_same_ranks() -> None:
    model, adapter = triplet_model(rank=4)
    optimizer = AdamW(adapter.factors("all"))
    train(model, optimizer, 1)
    kept = {name: torch.arange(number % 3) for number, name in enumerate(adapter.names)}
    shrink(adapter, kept, optimizer)
    for name, layer in zip(adapter.names, adapter.layers, strict=True):
        rank = len(kept[name])
        wanted = {(rank,), (rank, layer.in_features), (layer.out_features, rank)}
        factors = layer.factors_of("default")
        assert {tuple(factor.shape) for factor in factors} == wanted
        assert layer.r["default"] == rank
        for factor in factors:
            assert (
                optimizer.state[factor]["exp_avg"].shape == optimizer.state[factor]["exp_avg_sq"].shape == factor.shape
            )
            assert factor.untyped_storage().nbytes() == factor.numel() * factor.element_size()


def test_other_optimizers() -> None:
    model, adapter = triplet_model(rank=4)
    optimizer = SGD(adapter.factors("all"), lr=1e-3, momentum=0.9)
    train(model, optimizer, 2)
    shrink(adapter, {name: torch.tensor([1, 3]) for name in adapter.names}, optimizer)
    assert optimizer.state[adapter.q[0]]["momentum_buffer"].shape == adapter.q[0].shape
    model, adapter = triplet_model(rank=4)
    factored = Adafactor(adapter.factors("all"))
    train(model, factored, 2)
    with pytest.warns(LorankWarning, match="starts anew"):
        shrink(adapter, {name: torch.tensor([1, 3]) for name in adapter.names}, factored)
    train(model, factored, 1)


def test_a_checkpoint_of_fewer_triplets_can_be_loaded() -> None:
    """Trainer loads the adapter before any callback is asked."""
    model, adapter = triplet_model(rank=4)
    large = copy.deepcopy(model)
    shrink(adapter, {name: torch.arange(number % 3) for number, name in enumerate(adapter.names)})
    large.load_state_dict(model.state_dict())
    assert TripletAdapter.of(large).ranks == adapter.ranks
    assert torch.equal(large(**random_batch()).logits, model(**random_batch()).logits)
