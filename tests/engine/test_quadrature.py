import pytest

from lorank import LorankError
from lorank.engine.quadrature import path_nodes


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


def test_bad_rules_are_refused() -> None:
    for arguments in (("simpson", 4), ("paper", 0)):
        with pytest.raises(LorankError):
            path_nodes(*arguments)
