"""The diagonal of the true Hessian by Hutchinson's estimator, with probes that are outer products."""

import random
from collections.abc import Sequence
from typing import Literal

import torch

from lorank.errors import ScoresError
from lorank.targets import Target


class OuterProductProbes:
    """Random directions `v = a bᵀ` in the weights of every module, each example with its own.

    For `a`, `b` of random signs `E[v vᵀ] = 1`, as Hutchinson's estimator needs: `E[v ∘ H v] = diag H`. With the weights
    at `W + a (b ∘ s)ᵀ` the second derivatives by `s: (d_in,)` sum up the columns that are wanted,

        `E[∂/∂s_j Σ_k ∂L/∂s_k] = E[Σ_{i,i',k} a_i b_j a_i' b_k ∂²L/∂W_ij ∂W_i'k] = Σ_i h_ij`   at `s = 0`.

    So neither the direction nor the gradient nor the product `H v` is ever as large as `W`; frozen and quantised weights
    are not differentiated at all. The second derivative is taken of one module at a time. Along all directions at once it
    would have the same expectation, but each module's estimate would carry the curvature between it and all other modules
    as noise, which is larger than most traces. The first pass backward is shared: `M` modules cost one pass forward, one
    backward, and for each module one backward through the part of the graph between it and the loss, on average half.
    With `at_once` neighbours share one such backward pass, which makes it cheaper and noisier; it is unbiased all the same.

    Because each example has a direction of its own, drawn from its number, the estimate does not depend on how examples are
    put into batches.
    """

    def __init__(self, targets: Sequence[Target], seed: int, at_once: int | Literal["all"] = 1) -> None:
        """Take the modules, the seed of directions, and of how many modules a second derivative is taken at once."""
        self.seed, self.at_once = seed, at_once
        self._place: dict[str, tuple[int, int, int]] = {}
        self._total = 0
        for target in sorted(targets, key=lambda target: target.name):
            self._place[target.name] = self._total, target.d_in, target.d_out
            self._total += target.d_in + target.d_out
        self._signs = torch.empty(0)
        self._steps: dict[str, torch.Tensor] = {}

    def draw(self, examples: Sequence[int], probe: int) -> None:
        """Draw the directions of a batch; `examples` are the numbers of its examples in the calibration set."""
        signs = []
        for example in examples:
            generator = torch.Generator()
            generator.manual_seed(random.Random(f"{self.seed}/probe/{probe}/{example}").getrandbits(63))
            signs.append(torch.randint(0, 2, (self._total,), generator=generator, dtype=torch.int8))
        self._signs = torch.stack(signs) * 2 - 1
        self._steps = {}

    def move(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Output of module `name` with its weights moved by `s`, which is zero: `y + a ((b ∘ s) · x)`.

        Raises:
            ScoresError: the layer works in half precision.

        """
        if y.dtype in (torch.float16, torch.bfloat16):
            raise ScoresError(
                f"{name!r} works in {str(y.dtype).removeprefix('torch.')}, in which second derivatives are noise; load the model "
                "in fp32 without autocast, or use estimator='fisher' or 'kfac'"
            )
        start, d_in, d_out = self._place[name]
        signs = self._signs[:, start : start + d_in + d_out].to(x.device, x.dtype)
        b, a = signs[:, :d_in], signs[:, d_in:]
        if name not in self._steps:
            self._steps[name] = torch.zeros_like(b, requires_grad=True)
        along = torch.bmm(x, (b * self._steps[name])[:, :, None])
        return y + (along * a[:, None, :]).to(y.dtype)

    def columns(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Estimates `(examples, d_in)` of each module that ran, from the summed loss of the batch."""
        steps = self._steps  # in the order in which modules ran
        found = {name: torch.zeros_like(step) for name, step in steps.items()}
        gradients = torch.autograd.grad(loss, list(steps.values()), create_graph=True, materialize_grads=True)
        # A gradient without a graph: the loss is linear in all weights.
        sums = {n: g.sum().to(loss.device) for n, g in zip(steps, gradients, strict=True) if g.requires_grad}
        curved = list(sums)
        size = len(curved) if self.at_once == "all" else self.at_once
        for start in range(0, len(curved), size or 1):
            group = curved[start : start + size]
            total, own = torch.stack([sums[name] for name in group]).sum(), [steps[name] for name in group]
            second = torch.autograd.grad(total, own, retain_graph=True, materialize_grads=True)
            found |= dict(zip(group, second, strict=True))
        return found


def trace_with_errors(traces: torch.Tensor, counts: torch.Tensor) -> tuple[float, float, float]:
    """The trace of one module by Hutchinson's estimator, `T = Σ_n mean_p e_np / Σ_n c_n`, and how sure it is.

    Args:
        traces: `e_np = v' H_n v`, `(probes, examples)`, of the summed loss of example n along its direction p.
        counts: `c_n`, targets of each example, `(examples,)`.

    Returns:
        `T`; its standard error by the spread over examples, `√(N/(N-1) Σ_n (mean_p e_np - T c_n)²) / Σ c`, which has both
        what other examples and what other directions would change; and the standard error of the directions alone, for
        these examples, `√(Σ_n var_p(e_np) / P) / Σ c`. NaN where there is a single example, or a single direction.

    """
    total, (probes, examples) = counts.sum(), traces.shape
    means = traces.mean(0)
    trace = means.sum() / total
    error = of_probes = float("nan")
    if examples > 1:
        error = float((examples / (examples - 1) * (means - trace * counts).square().sum()).sqrt() / total)
    if probes > 1:
        of_probes = float((traces.var(0).sum() / probes).sqrt() / total)
    return float(trace), error, of_probes
