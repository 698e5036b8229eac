import pytest
import torch

from lorank.engine.smoother import RunningSmoother

BATCHES = torch.tensor([[1.0, 10.0], [3.0, -2.0], [2.0, 0.5], [7.0, 4.0]])


def filled(kind, upto: int = 4) -> RunningSmoother:
    smoother = RunningSmoother(kind, decay=0.8)
    for batch in BATCHES[:upto]:
        smoother.add([batch])
    return smoother


def test_each_kind_is_what_its_formula_says() -> None:
    assert torch.allclose(filled("mean").scores()[0], BATCHES.mean(0))
    assert torch.allclose(filled("sum").scores()[0], BATCHES.sum(0))
    assert torch.equal(filled("last").scores()[0], BATCHES[-1])
    weights = 0.2 * 0.8 ** torch.arange(3, -1, -1)
    assert torch.allclose(filled("ema").scores()[0], weights @ BATCHES / weights.sum())


def test_the_standard_error_is_that_of_the_weighted_batches() -> None:
    deviation = BATCHES.std(0)
    assert torch.allclose(filled("mean").standard_errors()[0], deviation / 2)
    assert torch.allclose(filled("sum").standard_errors()[0], deviation * 2)
    weights = 0.2 * 0.8 ** torch.arange(3, -1, -1)
    assert torch.allclose(filled("ema").standard_errors()[0], deviation * (weights / weights.sum()).norm())
    assert filled("mean", upto=1).standard_errors() is None


@pytest.mark.parametrize("kind", ["mean", "sum", "ema", "last"])
def test_a_restored_smoother_goes_on_bit_for_bit(kind) -> None:
    half, other = filled(kind, upto=2), RunningSmoother(kind, decay=0.8)
    other.load_state_dict(half.state_dict())
    for smoother in (half, other):
        for batch in BATCHES[2:]:
            smoother.add([batch])
    assert torch.equal(half.scores()[0], other.scores()[0])
    assert torch.equal(half.standard_errors()[0], other.standard_errors()[0])


def test_state_is_fp32_whatever_the_scores_are() -> None:
    smoother = RunningSmoother()
    smoother.add([torch.ones(2, dtype=torch.bfloat16)])
    assert {tensor.dtype for name, tensor in smoother.state_dict().items() if "/" in name} == {torch.float32}
    RunningSmoother().load_state_dict(RunningSmoother().state_dict())
