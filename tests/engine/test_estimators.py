import random
import statistics

import pytest
import torch
from tests.conftest import random_batch, triplet_model

from lorank import LorankError
from lorank.adapter.path import path_point
from lorank.engine.estimators import (
    QuadratureCheck,
    check_quadrature,
    estimator_points,
    integrated_gradients,
    intervals_for,
    layer_groups,
)
from lorank.engine.path import model_loss, path_integral
from lorank.engine.quadrature import trapezoid_bound

N = 20


def integral(estimator, intervals, seed, function):
    """One estimate of `∫ g(α) dα`."""
    points = estimator_points(estimator, intervals, random.Random(seed))
    return sum(weight * function(alpha) for alpha, weight in points)


@pytest.mark.parametrize(
    ("estimator", "passes"),
    [("training-pass", 0), ("single-pass", 1), ("one-sample", 3), ("unbiased", 3), ("trapezoid", 21)],
)
def test_passes_are_as_stated(estimator: str, passes: int) -> None:
    assert len(estimator_points(estimator, N, random.Random(0))) == passes


def test_eq_5_is_the_composite_trapezoid() -> None:
    points = estimator_points("trapezoid", 4, random.Random(0))
    assert points == [(0.0, 0.125), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25), (1.0, 0.125)]


def test_eq_6_as_printed() -> None:
    (zero, first), (alpha, weight), (one, last) = estimator_points("one-sample", N, random.Random(0))
    assert (zero, one) == (0.0, 1.0)
    assert (first, weight, last) == (1 / (2 * N), 2 / (2 * N), 1 / (2 * N))
    drawn = {estimator_points("one-sample", N, random.Random(seed))[1][0] for seed in range(500)}
    assert drawn == {k / N for k in range(1, N)}
    assert alpha in drawn


def gradients_at(points, model, adapter, batch):
    return torch.cat(path_integral(model, adapter, batch, points, adapter.lambdas)[0])


def test_the_unbiased_form_averages_to_the_trapezoid_and_eq_6_does_not() -> None:
    """Signed integrals of the gradient by every λ, 2,000 draws; within four standard errors, unit by unit."""
    model, adapter = triplet_model(rank=1)
    batch = random_batch()
    nodes = {k / N: gradients_at([(k / N, 1.0)], model, adapter, batch) for k in range(N + 1)}
    exact = sum((0.5 if k in (0, N) else 1.0) / N * nodes[k / N] for k in range(N + 1))

    def draws(estimator):
        return torch.stack(
            [
                sum(weight * nodes[alpha] for alpha, weight in estimator_points(estimator, N, random.Random(seed)))
                for seed in range(2000)
            ]
        )

    found = draws("unbiased")
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4 * error + 1e-12).all()
    literal = draws("one-sample").mean(0)
    # The interior node weighs 1/N in place of (N-1)/N: about 2/N of the integral is left.
    inner = sum(nodes[k / N] for k in range(1, N)) / (N - 1)
    assert torch.allclose(
        literal, (nodes[0.0] + 2 * inner + nodes[1.0]) / (2 * N), rtol=0.1, atol=3e-3 * exact.abs().max()
    )
    assert 0.05 < float(literal.abs().sum() / exact.abs().sum()) < 0.2


def test_eq_6_keeps_about_an_eighth_where_all_factors_are_scaled() -> None:
    """Methods note 2.3: 0.14 to 0.16 of |IG| at N = 20. Gradients that grow as α^2 to α^4 keep 0.125 to 0.175."""
    for power, kept in ((2, 0.125), (3, 0.150), (4, 0.175)):
        draws = [integral("one-sample", N, seed, lambda a, k=power: a**k) for seed in range(4000)]
        assert statistics.mean(draws) * (power + 1) == pytest.approx(kept, abs=0.006)


def test_a_single_pass_averages_to_the_integral() -> None:
    draws = [integral("single-pass", N, seed, lambda a: a**3) for seed in range(4000)]
    assert abs(statistics.mean(draws) - 0.25) < 4 * statistics.stdev(draws) / 4000**0.5


@pytest.mark.parametrize("moved", ["lambda", "all"])
def test_integrated_gradients_are_complete(moved: str) -> None:
    """Their sum over the moved factors is L(θ) - L(0), with an error that falls as N^-2 (theorem 1, item 5 of the note)."""
    model, adapter = triplet_model()
    batch = random_batch()
    with torch.no_grad():
        at_one = model_loss(model, batch)
        with path_point(adapter, 0.0, moved=moved):
            change = float(at_one - model_loss(model, batch))
    gaps = []
    for intervals in (16, 32, 64):
        points = estimator_points("trapezoid", intervals, random.Random(0))
        wrt = "lambda" if moved == "lambda" else "all"
        found = integrated_gradients(model, adapter, batch, points, moved=moved, wrt=wrt)
        gaps.append(abs(float(sum(part.sum() for part in found)) - change))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.1)
    check = check_quadrature(model, adapter, batch, 32, moved=moved)
    assert check.loss_change == pytest.approx(change)
    assert check.completeness_gap == pytest.approx(gaps[1], rel=1e-6)


def test_the_richardson_estimate_is_the_error() -> None:
    model, adapter = triplet_model()
    batch = random_batch()
    fine, rough = (
        torch.cat(
            integrated_gradients(
                model, adapter, batch, estimator_points("trapezoid", n, random.Random(0)), wrt="lambda"
            )
        )
        for n in (256, 16)
    )
    true = float((rough - fine).abs().sum() / rough.abs().sum())
    check = check_quadrature(model, adapter, batch, 16)
    assert check.richardson_estimate == pytest.approx(true, rel=0.15)
    # The estimated bound is on the safe side: the largest second difference of a unit stands for all of its path.
    assert true < check.bound_estimate < 20 * true


def test_estimates_of_a_gradient_that_is_a_parabola_are_exact() -> None:
    """With `L = Σ λ³/3` each `f(α) = ∂L/∂λ = α² λ²`, so `λ f'' = 2 λ³`, and the rule's error is the bound, `|λ|³ / (6 N²)`."""
    model, adapter = triplet_model()
    n, cubes = 4, sum(float(values.detach().abs().pow(3).sum()) for values in adapter.lambdas)
    check = check_quadrature(model, adapter, {}, n, loss=lambda *_: sum((v**3).sum() / 3 for v in adapter.lambdas))
    assert check.lipschitz_estimate == pytest.approx(2 * cubes)
    # T_N is λ³ (1/3 + 1/(6 N²)).
    assert check.bound_estimate == pytest.approx((1 / (6 * n**2)) / (1 / 3 + 1 / (6 * n**2)))
    assert check.richardson_estimate == pytest.approx(check.bound_estimate)
    # The Hessian is diag(2 λ), Lipschitz with ρ = 2, so the gap is within ρ ‖λ‖³ / (12 N²).
    every = torch.cat([values.detach() for values in adapter.lambdas])
    assert check.completeness_gap == pytest.approx(abs(float(every.pow(3).sum())) / (6 * n**2))
    assert check.completeness_gap <= trapezoid_bound(2 * float(every.norm()) ** 3, n)


@pytest.mark.parametrize("intervals", [2, 6])
def test_the_estimated_bound_is_never_below_the_richardson_estimate(intervals: int) -> None:
    """Each is a sum of second differences; the one takes their largest for all, the other their signed mean."""
    model, adapter = triplet_model()
    waves = [(37.0 * (1 + k), values) for k, values in enumerate(adapter.lambdas)]
    check = check_quadrature(model, adapter, {}, intervals, loss=lambda *_: sum((v * w).sin().sum() for w, v in waves))
    assert check.bound_estimate >= check.richardson_estimate > 0


def test_a_check_of_an_earlier_version_is_read() -> None:
    record = {"intervals": 8, "loss_change": -1.0, "completeness_gap": 0.1, "richardson_error": 0.02}
    assert QuadratureCheck.of(record) == QuadratureCheck(8, -1.0, 0.1, 0.02)


def test_auto_intervals_reach_the_tolerance() -> None:
    model, adapter = triplet_model()
    batch = random_batch()
    first = check_quadrature(model, adapter, batch, 8)
    for tolerance in (1e-2, 1e-3):
        n = intervals_for(tolerance, first)
        assert check_quadrature(model, adapter, batch, n).richardson_estimate < 1.2 * tolerance
    assert intervals_for(1e-12, first) == 128
    assert intervals_for(0.5, QuadratureCheck(8, 1.0, 0.0, 1e-9)) == 2


def test_at_zero_lambda_there_is_no_error_to_speak_of() -> None:
    model, adapter = triplet_model()
    with torch.no_grad():
        for values in adapter.lambdas:
            values.zero_()
    check = check_quadrature(model, adapter, random_batch(), 4)
    assert check.richardson_estimate == float("inf")
    assert intervals_for(0.01, check) == 4
    assert check.completeness_gap == 0


def test_one_layer_at_a_time_leaves_the_others_where_they_are() -> None:
    model, adapter = triplet_model()
    groups = layer_groups([name.split(".")[3] if "layer" in name else "" for name in adapter.names])
    assert sorted(index for group in groups for index in group) == list(range(len(adapter.names)))
    batch = random_batch()
    points = estimator_points("trapezoid", 4, random.Random(0))
    together = integrated_gradients(model, adapter, batch, points)
    apart = integrated_gradients(model, adapter, batch, points, groups=groups)
    by_hand = integrated_gradients(model, adapter.only(*groups[0]), batch, points)
    for position, index in enumerate(groups[0]):
        assert torch.equal(apart[index], by_hand[position])
    assert [part.shape for part in together] == [part.shape for part in apart]
    assert not torch.allclose(together[0], apart[0])


def test_the_units_three_sums_are_equal() -> None:
    """λ ∂λ = Σ P ∂P = Σ Q ∂Q at every point, and so along a path of all factors: one number of a unit is enough.

    On a path of λ alone P and Q stand still, and their sums carry the point's α besides.
    """
    model, adapter = triplet_model()
    size = len(adapter.names)
    for moved in ("lambda", "all"):
        points = estimator_points("trapezoid", 3, random.Random(0))
        found = integrated_gradients(model, adapter, random_batch(), points, moved=moved)
        if moved == "lambda":
            points = [(alpha, alpha * weight) for alpha, weight in points]
        expected = integrated_gradients(model, adapter, random_batch(), points, moved=moved, wrt="lambda")
        for values, p, q in zip(expected, found[size : 2 * size], found[2 * size :], strict=True):
            assert torch.allclose(p.sum(0), values, atol=1e-12)
            assert torch.allclose(q.sum(1), values, atol=1e-12)


def test_bad_arguments() -> None:
    for estimator, n in (("one-sample", 1), ("unbiased", 1), ("trapezoid", 0), ("simpson", 4)):
        with pytest.raises(LorankError, match="allowed"):
            estimator_points(estimator, n, random.Random(0))
    model, adapter = triplet_model()
    with pytest.raises(LorankError, match="not even"):
        check_quadrature(model, adapter, random_batch(), 3)
