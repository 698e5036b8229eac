"""Distances of low-rank updates against dense matrices, in float64."""

import pytest
import torch

from lorank.serving.adapter_files import LoraPair
from lorank.serving.delta import difference_norm, product_norm, rounding


def pair(rank: int, seed: int) -> LoraPair:
    source = torch.Generator().manual_seed(seed)
    return LoraPair(
        torch.randn(rank, 9, dtype=torch.float64, generator=source),
        torch.randn(7, rank, dtype=torch.float64, generator=source),
    )


@pytest.mark.parametrize("rank", [1, 3, 12])  # 12 is above both dimensions
def test_norms_equal_those_of_dense_matrices(rank: int) -> None:
    one, other = pair(rank, 0), pair(2, 1)
    dense = 0.7 * one.b @ one.a
    assert product_norm(one, 0.7) == pytest.approx(float(dense.norm()), rel=1e-12)
    assert difference_norm(one, 0.7, other, -2.0) == pytest.approx(
        float((dense + 2 * other.b @ other.a).norm()), rel=1e-12
    )


def test_the_short_way_for_one_pair_equals_the_long_one() -> None:
    one = pair(3, 0)
    same = LoraPair(one.a.clone(), one.b.clone())
    assert difference_norm(one, 0.5, one, 2.0) == pytest.approx(difference_norm(one, 0.5, same, 2.0), rel=1e-12)
    assert difference_norm(one, 0.5, one, 0.5) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_bounds_what_casting_does(dtype: torch.dtype) -> None:
    for seed in range(20):
        one = pair(4, seed)
        cast = LoraPair(one.a, (one.b * 1.3).to(dtype))
        assert 0 < difference_norm(cast, 1.0, one, 1.3) <= rounding(one, 1.3, dtype)
        # Far enough from what a wrong scale does, to tell them apart.
        assert rounding(one, 1.3, dtype) < 0.1 * product_norm(one, 1.3)
