import pytest
import torch

from lorank.engine.accumulate import ScoreAccumulator

BATCHES = torch.tensor([[1.0, 10.0], [3.0, -2.0], [2.0, 0.5], [7.0, 4.0]])


def filled(kind, upto: int = 4) -> ScoreAccumulator:
    accumulator = ScoreAccumulator(kind, decay=0.8)
    for batch in BATCHES[:upto]:
        accumulator.add(batch)
    return accumulator


def test_each_kind_is_what_its_formula_says() -> None:
    assert torch.allclose(filled("mean").value(), BATCHES.mean(0))
    assert torch.allclose(filled("sum").value(), BATCHES.sum(0))
    assert torch.equal(filled("last").value(), BATCHES[-1])
    weights = 0.2 * 0.8 ** torch.arange(3, -1, -1)
    assert torch.allclose(filled("ema").value(), weights @ BATCHES / weights.sum())


def test_the_standard_error_is_that_of_the_weighted_batches() -> None:
    deviation = BATCHES.std(0)
    assert torch.allclose(filled("mean").standard_error(), deviation / 2)
    assert torch.allclose(filled("sum").standard_error(), deviation * 2)
    weights = 0.2 * 0.8 ** torch.arange(3, -1, -1)
    assert torch.allclose(filled("ema").standard_error(), deviation * (weights / weights.sum()).norm())
    assert filled("mean", upto=1).standard_error() is None


@pytest.mark.parametrize("kind", ["mean", "sum", "ema", "last"])
def test_a_restored_accumulator_goes_on_bit_for_bit(kind) -> None:
    half, other = filled(kind, upto=2), ScoreAccumulator(kind, decay=0.8)
    other.restore(half.state())
    for accumulator in (half, other):
        for batch in BATCHES[2:]:
            accumulator.add(batch)
    assert torch.equal(half.value(), other.value())
    assert torch.equal(half.standard_error(), other.standard_error())


def test_state_is_fp32_whatever_the_scores_are() -> None:
    accumulator = ScoreAccumulator()
    accumulator.add(torch.ones(2, dtype=torch.bfloat16))
    assert {tensor.dtype for name, tensor in accumulator.state().items() if name != "count"} == {torch.float32}
    ScoreAccumulator().restore(ScoreAccumulator().state())
