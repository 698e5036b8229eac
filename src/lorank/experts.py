"""Fused experts: parameters that hold the weights of all experts of a layer, and which PEFT adapts by `target_parameters`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from lorank.errors import TargetError
from lorank.module_names import ends_with, leaf_of, without_adapter
from lorank.untrusted.expressions import check_time, compiled

if TYPE_CHECKING:
    from torch import nn

ALL_EXPERTS = "all-experts"


class FusedExperts(NamedTuple):
    """Shape of a parameter of fused experts: `(experts, d_out, d_in)`, or `(experts, d_in, d_out)` where it is `transposed`."""

    d_in: int
    d_out: int
    experts: int
    transposed: bool


def fused_experts(parts: Mapping[str, nn.Module]) -> dict[str, FusedExperts]:
    """Full parameter name -> shape, of every parameter that holds the weight matrices of several experts.

    These are the 3-dimensional floating-point parameters of modules that say so many `num_experts`. Which way round a matrix is
    stored is read as PEFT reads it, from `is_transposed` of the module. Packed experts (MXFP4, 8 and 4 bits) are none.

    Args:
        parts: full name -> module, as of `lorank.targets.named_parts`.

    """
    found = {}
    for name, module in parts.items():
        experts, transposed = getattr(module, "num_experts", None), bool(getattr(module, "is_transposed", False))
        for leaf, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            of_numbers = parameter.is_floating_point() and parameter.dtype.itemsize > 1
            if len(shape) == 3 and shape[0] == experts and experts > 1 and of_numbers:
                d_in, d_out = shape[1:] if transposed else shape[:0:-1]
                found[f"{name}.{leaf}" if name else leaf] = FusedExperts(d_in, d_out, shape[0], transposed)
    return found


def chosen_experts(
    model_name: str, known: Mapping[str, FusedExperts], select: str | Sequence[str]
) -> dict[str, FusedExperts]:
    """Those of the known parameters that are meant: names or their ends, a regular expression, or `"all-experts"`.

    Raises:
        TargetError: there are none, or an entry means none.

    """
    if not known:
        raise TargetError(
            f"target_parameters: {model_name} has no parameter that holds several experts; leave it out (experts that are linear "
            "layers are chosen as other layers are)"
        )
    if isinstance(select, str):
        chosen = list(known) if select == ALL_EXPERTS else matching("target_parameters", select, known)
        missing = [] if chosen else [select]
    else:
        chosen = [name for name in known if any(ends_with(name, entry) for entry in select)]
        missing = [entry for entry in select if not any(ends_with(name, entry) for name in known)]
    if missing or not chosen:
        leaves = list(dict.fromkeys(map(leaf_of, known)))
        meant = get_close_matches(" ".join(map(leaf_of, missing)), [ALL_EXPERTS, *leaves], 1, 0.6)
        raise TargetError(
            f"target_parameters {missing or list(select)} match no parameter of experts"
            f"{f' (did you mean {meant[0]}?)' if meant else ''}; there are {', '.join(leaves)}, such as {next(iter(known))!r}; "
            f"{ALL_EXPERTS!r} takes all"
        )
    return {name: known[name] for name in chosen}


def matching(what: str, expression: str, names: Collection[str]) -> list[str]:
    """Those of the names that the expression of an option means as a whole.

    Raises:
        TargetError: it is no regular expression, or takes too long.

    """
    try:
        pattern = compiled(expression)
        check_time([expression], names)
    except ValueError as error:
        shown = expression if len(expression) <= 80 else f"{expression[:80]}..."
        raise TargetError(f"{what} {shown!r} is not a regular expression that can be used: {error}") from None
    return [name for name in names if pattern.fullmatch(name)]


def adapted_name(name: str, layer: Any) -> str:
    """Full name of what a LoRA layer of PEFT adapts: the layer's own, or that of the parameter of experts.

    PEFT wraps the module of experts once for each parameter, one wrapper in another, so that neither the name of a wrapper nor
    the keys in a file say which parameter is meant; the wrapper does.
    """
    parameter = getattr(layer, "parameter_name", None)
    return name if parameter is None else without_adapter(f"{name}.{parameter}")
