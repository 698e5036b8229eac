import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.scoring.curvature.networks import Stack, column_sums, hessian_columns, mean_columns

from lorank.scoring.curvature import fisher


def test_it_is_the_squared_gradient_of_every_single_example() -> None:
    model = Stack(4, 6, 3)
    x, labels = torch.randn(7, 5, 4, dtype=torch.float64), torch.randn(7, 5, 3, dtype=torch.float64)
    sums = column_sums(model, [{"x": x, "labels": labels}], "fisher")
    for layer in (0, 1):
        expected = torch.zeros(model.targets()[layer].d_in, dtype=torch.float64)
        for one in range(7):
            loss = model.losses(x[one : one + 1], labels[one : one + 1]).sum()
            (gradient,) = torch.autograd.grad(loss, [model.layers[layer].weight])
            expected += gradient.square().sum(0) / 7
        torch.testing.assert_close(mean_columns(sums, f"layers.{layer}"), expected)


def test_logistic_regression_has_its_hessian_in_expectation_over_the_models_labels() -> None:
    # The expectation is taken exactly: every label, weighted by its probability, for one example after the other.
    model = Stack(4, 3, how="classes")
    x = torch.randn(6, 4, dtype=torch.float64)
    probabilities = torch.softmax(model(x), 1).detach()
    expected = torch.zeros(4, dtype=torch.float64)
    for one in range(6):
        for label in range(3):
            batch = {"x": x[one : one + 1], "labels": torch.tensor([label])}
            expected += probabilities[one, label] * mean_columns(column_sums(model, [batch], "fisher")) / 6
    torch.testing.assert_close(expected, hessian_columns(model, {"x": x, "labels": torch.zeros(6).long()}, 0))


@given(
    examples=st.integers(1, 5),
    tokens=st.integers(1, 9),
    d_in=st.integers(1, 8),
    d_out=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_both_forms_agree(examples: int, tokens: int, d_in: int, d_out: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, tokens, d_in, dtype=torch.float64, generator=source)
    delta = torch.randn(examples, tokens, d_out, dtype=torch.float64, generator=source)
    torch.testing.assert_close(fisher.by_token_products(x, delta), fisher.by_gradients(x, delta), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("tokens", "form"), [(2, "by_token_products"), (64, "by_gradients")])
def test_the_cheaper_form_is_taken(tokens: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("by_token_products", "by_gradients"):
        plain = getattr(fisher, name)
        monkeypatch.setattr(
            fisher, name, lambda x, delta, name=name, plain=plain: (called.append(name), plain(x, delta))[1]
        )
    fisher.squared_gradient_columns(torch.randn(2, tokens, 8), torch.randn(2, tokens, 8))
    assert called == [form]


def test_gradients_are_made_a_few_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "_HELD", 2 * 3 * 4)
    x, delta = torch.randn(5, 9, 3), torch.randn(5, 9, 4)
    assert [len(part) for part in fisher.example_gradients(x, delta)] == [2, 2, 1]
    torch.testing.assert_close(fisher.by_gradients(x, delta), fisher.by_token_products(x, delta))
