"""Gradients of the parameters of fused experts, by one example's loss; a router decides which experts see which tokens.

No hook sees what goes into one expert, since there is no layer of it. But the gradient of the parameter itself has all that the
tokens which were routed to an expert give, weighted as the router weighs them, and zeros for an expert that got none.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from lorank.errors import ScoresError
from lorank.scoring.precision import at_least_fp32
from lorank.targets import Target


@contextmanager
def gradients_of_experts(
    model: nn.Module, targets: Iterable[Target], show: Callable[[Target, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Every backward pass shows `(target, gradient, parameter)` of each target that is a parameter of experts.

    A gradient is given up as soon as it was shown, so that no more than one is held. Gradients that were there before are back
    afterwards.

    Raises:
        ScoresError: such a parameter is offloaded.

    """
    with ExitStack() as stack:
        for target in targets:
            if not target.experts:
                continue
            parameter = model.get_parameter(target.name)
            if parameter.device.type == "meta":
                raise ScoresError(f"{target.name!r} is elsewhere (offloaded); load the model whole to score it")
            stack.callback(_as_before, parameter, parameter.grad, parameter.requires_grad)
            parameter.grad = None

            def shown(parameter: torch.Tensor, target: Target = target) -> None:
                gradient, parameter.grad = parameter.grad, None
                assert gradient is not None, "the hook runs when there is one"
                with torch.no_grad():
                    show(target, gradient, parameter)

            stack.callback(parameter.requires_grad_().register_post_accumulate_grad_hook(shown).remove)
        yield


def _as_before(parameter: nn.Parameter, gradient: torch.Tensor | None, trained: bool) -> None:
    parameter.grad = gradient
    parameter.requires_grad_(trained)


def columns_of_experts(
    target: Target,
    gradient: torch.Tensor,
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
) -> torch.Tensor:
    """`Σ_e Σ_i v(g_eij, w_eij)`: summed over experts and outputs, `(1, d_in)`, in at least fp32.

    Args:
        target: says which way round a matrix is stored.
        gradient: of one example's loss, `(experts, d_out, d_in)` or transposed.
        value: v, of one expert's gradient and weight, which are in at least fp32; it may change the gradient.
        weight: of the gradient's shape.

    """
    columns = at_least_fp32(gradient.new_zeros(1, target.d_in))
    for of_expert, matrix in zip(gradient, weight, strict=True):
        columns += value(at_least_fp32(of_expert), at_least_fp32(matrix)).sum(1 if target.transposed else 0)
    return columns
