"""Nodes and weights that stand for the integral over the path coefficient, `∫_0^1 f(α) dα ≈ Σ_k w_k f(α_k)`."""

from dataclasses import dataclass

from lorank.engine.options import NodeRule
from lorank.errors import LorankError


@dataclass(frozen=True)
class PathNodes:
    """Path coefficients and their weights, which sum to 1."""

    alphas: tuple[float, ...]
    weights: tuple[float, ...]


def path_nodes(rule: NodeRule, intervals: int = 10) -> PathNodes:
    """Make the nodes of a rule.

    | rule          | nodes                        | error of the sum | where from                              |
    |---------------|------------------------------|------------------|-----------------------------------------|
    | `"paper"`     | 1/N, 2/N, ..., 1             | N^-1             | I-LoRA, section 1.3: {0.1, ..., 1.0}    |
    | `"midpoint"`  | 1/2N, 3/2N, ..., (2N-1)/2N   | N^-2             | composite midpoint                      |
    | `"trapezoid"` | 0, 1/N, ..., 1 (ends half)   | N^-2             | IGU-LoRA, eq. 5                         |
    | `"gradient"`  | 1                            | no path at all   | I-LoRA's ablation, instantaneous scores |

    Raises:
        LorankError: fewer than one interval, or an unknown rule.

    """
    if intervals < 1:
        raise LorankError(f"path intervals are {intervals}; allowed: whole numbers from 1")
    n = intervals
    if rule == "paper":
        return PathNodes(tuple(k / n for k in range(1, n + 1)), (1 / n,) * n)
    if rule == "midpoint":
        return PathNodes(tuple((2 * k + 1) / (2 * n) for k in range(n)), (1 / n,) * n)
    if rule == "trapezoid":
        return PathNodes(tuple(k / n for k in range(n + 1)), (0.5 / n, *(1 / n,) * (n - 1), 0.5 / n))
    if rule == "gradient":
        return PathNodes((1.0,), (1.0,))
    raise LorankError(f"path rule is {rule!r}; allowed: 'paper', 'midpoint', 'trapezoid', 'gradient'")


def trapezoid_bound(lipschitz: float, intervals: int) -> float:
    """Largest error of the composite trapezoid rule with N intervals on [0, 1]: `L / (12 N²)`.

    It holds for every f whose derivative is Lipschitz with constant L, and so with `L = max |f''|` where there is a second
    derivative. The parabola `L α² / 2` has exactly this error. For the integrated gradient `w ∫ ∂L(αθ)/∂w dα` of IGU-LoRA
    (eq. 4 and 5, theorem 1) f is the gradient along the path, and the bound is multiplied by `|w|`: docs/igu-lora.md.

    Args:
        lipschitz: L, in the units of f.
        intervals: N.

    Returns:
        The bound, in the units of f.

    Raises:
        LorankError: a negative constant, or fewer than one interval.

    """
    if lipschitz < 0 or intervals < 1:
        raise LorankError(
            f"the trapezoid's bound got Lipschitz constant {lipschitz} and {intervals} intervals; allowed: a constant from 0, "
            "and whole numbers from 1"
        )
    return lipschitz / (12 * intervals**2)
