import math
from collections.abc import Callable

import pytest

from lorank import LorankError
from lorank.engine.quadrature import path_nodes, trapezoid_bound


@pytest.mark.parametrize("rule", ["paper", "midpoint", "trapezoid", "gradient"])
def test_weights_sum_to_one(rule) -> None:
    for intervals in (1, 2, 7, 20):
        assert sum(path_nodes(rule, intervals).weights) == pytest.approx(1, abs=1e-15)


def test_the_papers_ten_nodes() -> None:
    assert path_nodes("paper", 10).alphas == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize(("rule", "constant"), [("trapezoid", 1 / 6), ("midpoint", -1 / 12)])
def test_second_order_rules_have_their_known_error_on_a_parabola(rule, constant: float) -> None:
    for intervals in (1, 3, 10):
        nodes = path_nodes(rule, intervals)
        error = sum(w * a * a for a, w in zip(nodes.alphas, nodes.weights, strict=True)) - 1 / 3
        assert error == pytest.approx(constant / intervals**2, rel=1e-9)


def trapezoid_error(f: Callable[[float], float], integral: float, intervals: int) -> float:
    nodes = path_nodes("trapezoid", intervals)
    return abs(math.fsum(w * f(a) for a, w in zip(nodes.alphas, nodes.weights, strict=True)) - integral)


# f on [0, 1], its integral, and the smallest Lipschitz constant of f' (max |f''|), each worked out by hand.
CLOSED_FORMS: dict[str, tuple[Callable[[float], float], float, float]] = {
    "line": (lambda a: 3 * a - 1, 0.5, 0.0),
    "parabola": (lambda a: 2 * a * a - a, 1 / 6, 4.0),
    "cubic": (lambda a: a**3, 0.25, 6.0),
    "quartic": (lambda a: a**4 - a, -0.3, 12.0),
    "exponential": (lambda a: math.exp(2 * a), (math.exp(2) - 1) / 2, 4 * math.exp(2)),
    "sine": (lambda a: math.sin(5 * a), (1 - math.cos(5)) / 5, 25.0),  # sin'' reaches -25 within the path
    # A gradient that saturates: σ'' is largest where σ = (3 ± √3)/6, there √3/18.
    "sigmoid": (lambda a: 1 / (1 + math.exp(-8 * a)), math.log((1 + math.exp(8)) / 2) / 8, 64 * math.sqrt(3) / 18),
    # f' = |α - 0.3| is Lipschitz with 1, and f'' jumps at 0.3.
    "jump of f''": (lambda a: (a - 0.3) * abs(a - 0.3) / 2, (0.7**3 - 0.3**3) / 6, 1.0),
    # Two cubics with f' = 3 (α - 1/2)², rising at both ends.
    "two cubics": (lambda a: abs(a - 0.5) ** 3, 2 * 0.5**4 / 4, 3.0),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_error_is_within_the_bound(name: str) -> None:
    """Theorem 1's N^-2 term with its constant: error ≤ L / (12 N²), for every N."""
    f, integral, lipschitz = CLOSED_FORMS[name]
    for intervals in (*range(1, 34), 50, 128):
        assert trapezoid_error(f, integral, intervals) <= trapezoid_bound(lipschitz, intervals) + 4e-16, intervals


def test_the_bound_is_attained() -> None:
    """By the parabola, for every N; so no smaller constant than 1/12 would do."""
    f, integral, lipschitz = CLOSED_FORMS["parabola"]
    for intervals in (1, 2, 7, 20):
        error = trapezoid_error(f, integral, intervals)
        assert error == pytest.approx(lipschitz / (12 * intervals**2), rel=1e-11)
        assert error == pytest.approx(trapezoid_bound(lipschitz, intervals), rel=1e-11)


def test_a_gradient_that_jumps_is_outside_of_the_condition() -> None:
    """A step at α = 1/3, as a ReLU makes in a gradient: the error falls as N^-1 only."""
    errors = [trapezoid_error(lambda a: float(a > 1 / 3), 2 / 3, 2**k) for k in range(1, 8)]
    # In its interval, of width 1/N, the step is at 1/3 or 2/3: the rule says half the width, and 2/3 or 1/3 are right.
    assert errors == pytest.approx([1 / 6 / 2**k for k in range(1, 8)], rel=1e-9)


def test_bad_constants_are_refused() -> None:
    for arguments in ((-1.0, 4), (1.0, 0)):
        with pytest.raises(LorankError, match="allowed"):
            trapezoid_bound(*arguments)


def test_bad_rules_are_refused() -> None:
    for arguments in (("simpson", 4), ("paper", 0)):
        with pytest.raises(LorankError):
            path_nodes(*arguments)
