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


@pytest.mark.parametrize("held", [1, 2 * 3 * 4, 10**6])
def test_gradients_are_made_in_parts_of_examples_and_of_rows(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "_HELD_IN_CACHE", held)
    monkeypatch.setattr(fisher, "_ROWS", 3)
    x, delta = torch.randn(5, 9, 3), torch.randn(5, 9, 4)
    sizes = [(examples.stop - examples.start) * (rows.stop - rows.start) for examples, rows in parts(x, delta)]
    assert max(sizes) * 3 <= max(held, 1 * 3 * 3)
    covered = torch.zeros(5, 4)
    for examples, rows in parts(x, delta):
        covered[examples, rows] += 1
    assert bool((covered == 1).all())
    torch.testing.assert_close(fisher.by_gradients(x, delta), fisher.by_token_products(x, delta))


def parts(x: torch.Tensor, delta: torch.Tensor) -> list[tuple[slice, slice]]:
    """Ends within the tensors."""
    found = fisher.parts_of_gradients(x, delta)
    return [(slice(e.start, min(e.stop, len(x))), slice(r.start, min(r.stop, delta.shape[2]))) for e, r in found]
