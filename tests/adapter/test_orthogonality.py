import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import tiny_config, triplet_model
from transformers import BertForSequenceClassification

from lorank.adapter.orthogonality import orthogonality, orthogonality_plain
from lorank.adapter.triplet import TripletAdapter, triplet_config


def test_the_batched_form_is_the_plain_one_with_its_gradient() -> None:
    _, adapter = triplet_model()
    factors = [*adapter.p, *adapter.q]
    plain, batched = orthogonality_plain(adapter), orthogonality(adapter)
    assert torch.allclose(plain, batched, atol=1e-13)
    for a, b in zip(torch.autograd.grad(plain, factors), torch.autograd.grad(batched, factors), strict=True):
        assert torch.allclose(a, b, atol=1e-13)


def test_different_ranks_are_batched_apart() -> None:
    config = LoraConfig(r=2, target_modules=["query", "key"], rank_pattern={"key": 5})
    adapter = TripletAdapter.of(get_peft_model(BertForSequenceClassification(tiny_config()), triplet_config(config)))
    assert set(adapter.ranks) == {2, 5}
    assert torch.allclose(orthogonality_plain(adapter), orthogonality(adapter), atol=1e-6)


def test_orthonormal_factors_cost_nothing_and_the_gradient_stays_finite() -> None:
    _, adapter = triplet_model()
    with torch.no_grad():
        for p, q in zip(adapter.p, adapter.q, strict=True):
            p.copy_(torch.eye(*p.shape, dtype=p.dtype))
            q.copy_(torch.eye(*q.shape, dtype=q.dtype))
    value = orthogonality(adapter)
    assert value.item() == 0
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, [*adapter.p, *adapter.q]))
