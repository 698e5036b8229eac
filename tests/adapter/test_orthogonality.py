import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import tiny_config, triplet_model
from transformers import BertForSequenceClassification

from lorank.adapter.orthogonality import add_orthogonality_gradient, orthogonality_plain
from lorank.adapter.triplet import TripletAdapter, triplet_config


def added(adapter: TripletAdapter) -> list[torch.Tensor]:
    """What `add_orthogonality_gradient`, which batches matrices of one shape, adds to P and Q."""
    factors = [*adapter.p, *adapter.q]
    for factor in factors:
        factor.grad = torch.zeros_like(factor)
    add_orthogonality_gradient(adapter, 1.0)
    return [factor.grad for factor in factors if factor.grad is not None]


def test_the_batched_gradient_is_that_of_the_plain_form() -> None:
    _, adapter = triplet_model()
    plain = torch.autograd.grad(orthogonality_plain(adapter), [*adapter.p, *adapter.q])
    for a, b in zip(plain, added(adapter), strict=True):
        assert torch.allclose(a, b, atol=1e-13)


def test_different_ranks_are_batched_apart() -> None:
    config = LoraConfig(r=2, target_modules=["query", "key"], rank_pattern={"key": 5})
    adapter = TripletAdapter.of(get_peft_model(BertForSequenceClassification(tiny_config()), triplet_config(config)))
    assert set(adapter.ranks) == {2, 5}
    plain = torch.autograd.grad(orthogonality_plain(adapter), [*adapter.p, *adapter.q])
    for a, b in zip(plain, added(adapter), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_orthonormal_factors_cost_nothing_and_the_gradient_stays_finite() -> None:
    _, adapter = triplet_model()
    with torch.no_grad():
        for p, q in zip(adapter.p, adapter.q, strict=True):
            p.copy_(torch.eye(*p.shape, dtype=p.dtype))
            q.copy_(torch.eye(*q.shape, dtype=q.dtype))
    value = orthogonality_plain(adapter)
    assert value.item() == 0
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, [*adapter.p, *adapter.q]))


@pytest.mark.parametrize("off_diagonal", [False, True])
def test_the_added_gradient_is_that_of_the_regulariser(off_diagonal: bool) -> None:
    _, adapter = triplet_model()
    factors = (*adapter.p, *adapter.q)
    for factor in factors:
        factor.grad = torch.ones_like(factor)
    adapter.p[1].grad = None  # took no part in this step
    add_orthogonality_gradient(adapter, 0.3, off_diagonal=off_diagonal)
    norms = []
    for wide in (*(p.T for p in adapter.p), *adapter.q):
        gram = wide @ wide.T
        norms.append(
            torch.linalg.matrix_norm(gram - (torch.diag(gram.diag()) if off_diagonal else torch.eye(len(gram))))
        )
    expected = torch.autograd.grad(0.3 * torch.stack(norms).mean(), factors)
    for factor, gradient in zip(factors, expected, strict=True):
        assert factor is adapter.p[1] or torch.allclose(factor.grad - 1, gradient, atol=1e-12)
    assert adapter.p[1].grad is None


def test_orthonormal_factors_have_no_gradient() -> None:
    _, adapter = triplet_model()
    with torch.no_grad():
        for p, q in zip(adapter.p, adapter.q, strict=True):
            p.copy_(torch.eye(*p.shape))
            q.copy_(torch.eye(*q.shape))
            p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    add_orthogonality_gradient(adapter, 1.0)
    assert all(not factor.grad.any() for factor in (*adapter.p, *adapter.q))
