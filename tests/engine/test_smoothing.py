import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import random_batch, triplet_model

from lorank.engine.options import DeviationOptions
from lorank.engine.smoother import DeviationSmoother
from lorank.engine.smoothing import (
    combine,
    sensitivity,
    sensitivity_plain,
    smooth_,
    smooth_plain,
)

SHAPES = [(3,), (5, 3), (3, 7), (0,), (4, 0)]


def smoother(mean_decay: float, deviation_decay: float, window: int, **options) -> DeviationSmoother:
    return DeviationSmoother(
        DeviationOptions(mean_decay=mean_decay, deviation_decay=deviation_decay), window, **options
    )


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sensitivities_are_the_plain_ones_and_at_least_fp32(dtype: torch.dtype) -> None:
    values, gradients = drawn(0, dtype), drawn(1, dtype)
    for fast, plain in zip(sensitivity(values, gradients), sensitivity_plain(values, gradients), strict=True):
        assert torch.equal(fast, plain)
        assert fast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_smoothing_is_the_plain_one() -> None:
    mean, deviation = [torch.zeros_like(t) for t in drawn(0)], [torch.zeros_like(t) for t in drawn(0)]
    plain_mean, plain_deviation = mean, deviation
    mean, deviation = [t.clone() for t in mean], [t.clone() for t in deviation]
    for step in range(20):
        plain_mean, plain_deviation = smooth_plain(plain_mean, plain_deviation, drawn(step), 0.85, 0.7)
        smooth_(mean, deviation, drawn(step), 0.85, 0.7)
    for fast, plain in zip((*mean, *deviation), (*plain_mean, *plain_deviation), strict=True):
        assert torch.allclose(fast, plain, atol=1e-15)


def test_closed_form_of_a_constant_sensitivity() -> None:
    """From zero, Ī_t = (1 - β1^t) s; Ū sums the distances that are left."""
    state = smoother(0.85, 0.7, 1)
    expected = 0.0
    for step in range(1, 11):
        state.add([torch.tensor([-2.0], dtype=torch.float64)])
        expected = 0.7 * expected + 0.3 * 2 * 0.85**step
        assert float(state.mean[0]) == pytest.approx(2 * (1 - 0.85**step))
        assert float(state.deviation[0]) == pytest.approx(expected)
    assert state.updates == 10


def test_after_one_step_the_ratio_is_the_same_for_everything() -> None:
    """1/β1 identically: why nothing is ranked by a ratio before its second step."""
    state = smoother(0.85, 0.85, 1)
    state.add([torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)])
    ratio = combine("ratio", state.mean[0], state.deviation[0], epsilon=1e-12, weight=1.0)
    assert torch.allclose(ratio, torch.full((3,), 1 / 0.85, dtype=torch.float64), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_ratio_carries_no_magnitude(factor: float, seed: int) -> None:
    """A thousand times the sensitivity is the same ratio, four times... a million times the product."""
    one, other = smoother(0.85, 0.85, 1), smoother(0.85, 0.85, 1)
    for step in range(30):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        s = torch.randn(4, generator=generator, dtype=torch.float64)
        one.add([s.clone()])
        other.add([factor * s])
    for kind, power in (("ratio", 0), ("product", 2), ("mean", 1), ("ucb", 1)):
        first = combine(kind, one.mean[0], one.deviation[0], epsilon=1e-15, weight=1.0)
        second = combine(kind, other.mean[0], other.deviation[0], epsilon=1e-15, weight=1.0)
        assert torch.allclose(second, factor**power * first, rtol=1e-6)


def test_so_the_ratio_does_not_find_the_important_units_and_the_product_does() -> None:
    """A simulation: true sensitivities over four decades."""
    truth = torch.logspace(-2, 2, 20, dtype=torch.float64)
    state = smoother(0.85, 0.85, 1)
    generator = torch.Generator().manual_seed(0)
    ratio, product = torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    for step in range(400):
        state.add([truth * torch.randn(20, generator=generator, dtype=torch.float64)])
        if step >= 50:
            ratio += combine("ratio", state.mean[0], state.deviation[0], epsilon=1e-6, weight=1.0) / 350
            product += combine("product", state.mean[0], state.deviation[0], epsilon=1e-6, weight=1.0) / 350
    assert float(ratio.max() / ratio.min()) < 1.3  # over four decades of truth
    assert (product.argsort() == torch.arange(20)).all()


def test_a_window_is_the_mean_of_its_mini_batches() -> None:
    """s_agg = 1/M Σ s, and the EMAs take one step for it; where the sign goes is an option."""
    batches = [torch.tensor([1.0, -1.0]), torch.tensor([-3.0, -1.0]), torch.tensor([5.0, 5.0])]
    expected = {"batch": [3.0, 7 / 3], "window": [1.0, 1.0], "never": [1.0, 1.0]}
    for absolute, mean in expected.items():
        state = smoother(0.0, 0.0, 3, absolute=absolute)
        for number, batch in enumerate(batches):
            assert state.updates == 0
            assert state.in_window == number
            state.add([batch.clone()])
        assert state.updates == 1
        assert torch.allclose(state.mean[0], torch.tensor(mean))
    negative = smoother(0.0, 0.0, 1, absolute="never")
    negative.add([torch.tensor([-2.0])])
    assert float(negative.mean[0]) == -2.0


@pytest.mark.parametrize("window", [1, 3])
def test_restoring_goes_on_exactly(window: int) -> None:
    whole, first = smoother(0.85, 0.7, window), smoother(0.85, 0.7, window)
    for step in range(5):
        whole.add(drawn(step))
        first.add(drawn(step))
    second = smoother(0.85, 0.7, window)
    second.load_state_dict({key: tensor.clone() for key, tensor in first.state_dict().items()})
    for step in range(5, 12):
        whole.add(drawn(step))
        second.add(drawn(step))
    assert whole.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in whole.state_dict().items())


def test_state_is_two_copies_of_what_is_scored() -> None:
    state = smoother(0.85, 0.85, 1)
    state.add(drawn(0, torch.bfloat16) and [t.float() for t in drawn(0)])
    assert state.state_bytes == 2 * 4 * sum(t.numel() for t in drawn(0))


def test_entries_can_be_forgotten() -> None:
    state = smoother(0.85, 0.85, 1)
    state.add([torch.arange(6.0).reshape(3, 2), torch.arange(3.0)])
    state.keep([(0, torch.tensor([0, 2])), (0, torch.tensor([1]))])
    assert state.mean[0].shape == (2, 2)
    assert torch.allclose(state.mean[1], 0.15 * torch.tensor([1.0]))


def test_one_number_a_unit_comes_from_lambda_alone() -> None:
    """λ ∂λ = Σ P ∂P = Σ Q ∂Q after an ordinary backward pass."""
    model, adapter = triplet_model()
    model(**random_batch()).loss.backward()
    for values, p, q in zip(adapter.lambdas, adapter.p, adapter.q, strict=True):
        unit = values * values.grad
        assert torch.allclose((p * p.grad).sum(0), unit, atol=1e-12)
        assert torch.allclose((q * q.grad).sum(1), unit, atol=1e-12)


def test_shares_of_processes_are_averaged_before_the_sign_goes() -> None:
    """|s| of a mini-batch is then the same however many processes share it."""
    whole, shared = smoother(0.5, 0.5, 1), smoother(0.5, 0.5, 1, average=lambda own: [(own[0] + other) / 2])
    one, other = torch.tensor([3.0, -1.0]), torch.tensor([-1.0, -1.0])
    whole.add([(one + other) / 2])
    shared.add([one.clone()])
    assert torch.equal(whole.scores()[0], shared.scores()[0])
