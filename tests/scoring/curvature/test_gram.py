import torch
from tests.scoring.curvature.networks import Stack, column_sums, hessian_columns

from lorank.scoring.curvature.gram import input_energy


def test_linear_regression_has_exactly_this_hessian() -> None:
    model = Stack(5, 3)
    batch = {"x": torch.randn(40, 5, dtype=torch.float64), "labels": torch.randn(40, 3, dtype=torch.float64)}
    sums = column_sums(model, [batch], "gram")
    columns = 2 * 3 * sums.columns["layers.0"].sum(0) / sums.tokens["layers.0"].sum()
    torch.testing.assert_close(columns, hessian_columns(model, batch, 0))


def test_padding_weighs_nothing_whatever_stands_there() -> None:
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    alone = torch.stack([row[real].square().sum(0) for row, real in zip(x, mask, strict=True)])
    x[~mask] = 1e6
    torch.testing.assert_close(input_energy(x, mask), alone)


def test_half_precision_is_summed_in_fp32() -> None:
    x = torch.full((1, 4096, 2), 0.1, dtype=torch.bfloat16)
    energy = input_energy(x)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(energy, torch.full((1, 2), 4096 * float(x[0, 0, 0]) ** 2))
