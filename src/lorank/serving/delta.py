"""How far two low-rank updates are apart, without making a matrix of the layer's size."""

import torch

from lorank.serving.adapter_files import LoraPair


def product_norm(pair: LoraPair, scale: float = 1.0) -> float:
    """`‖s B A‖` (Frobenius, float64) by QR of both factors: `‖B A‖ = ‖R_B R_Aᵀ‖`, at most r x r."""
    if not pair.rank:
        return 0.0
    upper = torch.linalg.qr(pair.b.double(), mode="r").R
    lower = torch.linalg.qr(pair.a.double().T, mode="r").R
    return abs(scale) * float(torch.linalg.matrix_norm(upper @ lower.T))


def difference_norm(one: LoraPair, scale: float, other: LoraPair, other_scale: float) -> float:
    """`‖s B A - s' B' A'‖` (Frobenius, float64): the difference is again a low-rank product, of both factors side by side."""
    if one is other:
        return product_norm(one, scale - other_scale)
    b = torch.cat([one.b.double() * scale, -other_scale * other.b.double()], 1)
    a = torch.cat([one.a.double(), other.a.double()])
    return product_norm(LoraPair(a, b))


def rounding(pair: LoraPair, scale: float, dtype: torch.dtype) -> float:
    """What one ulp of `dtype` in every element of `s B` can do to `s B A`: `ulp Σ_k |s| ‖b_k‖ ‖a_k‖`, and the least numbers.

    An update that is folded (`s B` rounded to `dtype`) differs from the trained one by no more than this.
    """
    found = torch.finfo(dtype)
    rows, columns = pair.a.double().norm(dim=1), pair.b.double().norm(dim=0)
    # Below the smallest normal number, rounding is to a fixed step.
    least = found.smallest_normal * found.eps * len(pair.b) ** 0.5
    return float(((found.eps * abs(scale)) * columns + least) @ rows)
