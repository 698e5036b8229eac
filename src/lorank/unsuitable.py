"""Linear layers that cannot carry an adapter, and why: what PEFT refuses or replaces, and what is no plain linear map."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorank.module_names import leaf_of

if TYPE_CHECKING:
    from torch import nn

# What a read weight is turned into on its way into a matrix product. (A slice is none: Bloom and DeBERTa take slices in
# branches that nobody trains in.)
_USED_AS = {"T", "t", "view", "reshape", "unsqueeze", "transpose", "permute", "to", "type", "float", "clone"}
_ONLY_LOOKED_AT = {"isinstance", "hasattr", "getattr", "type", "id"}
_WHILE_STARTING = ("__init__", "init", "_init", "reset")


def unsuitable(model: nn.Module, linears: Mapping[str, nn.Module], parents: Mapping[str, nn.Module]) -> dict[str, str]:
    """Which of the linear layers cannot carry an adapter: full name -> why, as the end of a sentence about the layer.

    Args:
        model: the whole model.
        linears: full name -> linear layer.
        parents: full name of the layer -> the module that holds it.

    """
    why = forbidden_by_peft(linears, model_type_of(model))
    tied = _embedding_weights(model)
    plain: dict[tuple[Any, ...], bool] = {}
    for name, layer in linears.items():
        leaf = leaf_of(name)
        parent: Any = type(parents[name])
        kind = (type(layer), *_features(layer))
        if kind not in plain:
            plain[kind] = _is_plain(layer)
        if name in why:
            continue
        if not plain[kind]:
            why[name] = f"is a {type(layer).__name__}, whose output is no single tensor of d_out: nothing to add B A to"
        elif leaf in _read_past(parent):
            why[name] = f"has its weight read by {parent.__name__} past the layer, where an adapter has no effect"
        elif id(layer.weight) in tied:
            why[name] = "shares its weight with an embedding, which merging the adapter would change as well"
    return why


def model_type_of(model: nn.Module) -> str | None:
    """`config.model_type` of a transformers model, by which PEFT decides what it replaces; None for other modules."""
    found = getattr(getattr(model, "config", None), "model_type", None)
    return found if isinstance(found, str) else None


def forbidden_by_peft(names: Iterable[str], model_type: str | None) -> dict[str, str]:
    """Which modules PEFT refuses, or replaces by parameters of experts, in models of this type: full name -> why."""
    if model_type is None:
        return {}
    leaves = {name: leaf_of(name) for name in names}
    reasons = {leaf: _why_forbidden(leaf, model_type) for leaf in sorted(set(leaves.values()))}
    return {name: reason for name, leaf in leaves.items() if (reason := reasons[leaf])}


@cache
def _why_forbidden(leaf: str, model_type: str) -> str | None:
    """Asked of PEFT itself, so that the answer is of the PEFT that will adapt the model."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    model: Any = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    config = LoraConfig(target_modules=[leaf])
    try:
        _check_lora_target_modules_mamba(config, model, leaf)
    except ValueError:
        return f"is refused by PEFT in models of type {model_type!r}"
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # of weights that are fused, one alone
        pass
    else:
        if leaf in (config.target_modules or ()):
            return None
    return f"would be replaced by PEFT, in models of type {model_type!r}, by the parameters of all experts, at another rank"


def _features(layer: Any) -> tuple[int, int]:
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else (layer.nx, layer.nf)


def _is_plain(layer: Any) -> bool:
    """Whether a linear layer gives `(rows, d_out)` for `(rows, d_in)`; tried without memory where its class says how itself."""
    import torch
    from torch import nn

    weight = layer.weight
    if type(layer).forward is nn.Linear.forward or not isinstance(layer, nn.Linear):
        return True
    if type(weight) is not nn.Parameter or weight.dtype.itemsize < 2:
        return True  # packed weights: a quantised layer, which PEFT knows
    like = copy.copy(layer)
    for held in ("_parameters", "_buffers"):
        there = getattr(layer, held)
        like.__dict__[held] = {
            key: None if value is None else value.detach().to("meta") for key, value in there.items()
        }
    rows = torch.empty(2, layer.in_features, dtype=weight.dtype, device="meta")
    try:
        with torch.no_grad():
            output = type(layer).forward(like, rows)
    except Exception:
        # Code of a model, in which such a layer has a part of its own; and not that of a quantiser, which wants its device.
        return not type(layer).__module__.startswith(("transformers.models.", "transformers_modules."))
    return isinstance(output, torch.Tensor) and output.shape == (2, layer.out_features)


def _embedding_weights(model: nn.Module) -> set[int]:
    from torch import nn

    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


@cache
def _read_past(parent: Any) -> frozenset[str]:
    """Children whose `.weight` the class puts into a computation of its own, as torch's attention and Mamba's kernels do."""
    from torch import nn

    found: set[str] = set()
    for each in parent.__mro__:
        if each in (nn.Module, object) or not issubclass(each, nn.Module):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and not function.name.startswith(_WHILE_STARTING):
                found |= _weights_used(function)
    return frozenset(found)


def _weights_used(function: ast.FunctionDef) -> set[str]:
    above = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    found = set()
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=leaf), attr="weight"):
                if _is_used(node, above):
                    found.add(leaf)
    return found


def _is_used(node: ast.AST, above: Mapping[ast.AST, ast.AST]) -> bool:
    match above[node]:
        case ast.BinOp(op=ast.MatMult()):
            return True
        case ast.Attribute(attr=method):
            return method in _USED_AS
        case ast.keyword() | ast.List() | ast.Tuple() as holder:
            return _is_used(holder, above)
        case ast.Call(func=called) if node is not called:
            return not (isinstance(called, ast.Name) and called.id in _ONLY_LOOKED_AT)
    return False
