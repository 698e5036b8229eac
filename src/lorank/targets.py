"""Which linear layers and experts of a model can be adapted, and what one unit of rank of each costs.

torch is loaded when a model is looked at, not before: allocating from a file of scores needs names alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lorank.errors import LorankWarning, TargetError
from lorank.experts import chosen_experts, fused_experts, matching
from lorank.model_parts import heads_of, unwrapped
from lorank.module_names import ends_with, is_within, leaf_of, parent_of, places

if TYPE_CHECKING:
    from torch import nn

ALL_LINEAR = "all-linear"  # PEFT's word, in any case of letters
EXPERTS = "experts"  # in the provenance of scores and plans: which of their names are parameters of fused experts


@dataclass(frozen=True)
class Target:
    """A linear layer that can carry an adapter, `W: (d_out, d_in)`; or a parameter that holds such a matrix for each expert.

    Attributes:
        name: full name of the layer, or of the parameter.
        d_in: inputs.
        d_out: outputs.
        experts: matrices in a parameter `(experts, d_out, d_in)` of fused experts; 0 for a linear layer.
        transposed: whether such a parameter is stored as `(experts, d_in, d_out)`.

    """

    name: str
    d_in: int
    d_out: int
    experts: int = 0
    transposed: bool = False

    @property
    def unit_cost(self) -> int:
        """Adapter parameters of one unit of rank: a row of A and a column of B, for every expert."""
        return (self.experts or 1) * (self.d_in + self.d_out)

    @property
    def weights(self) -> int:
        """Numbers in the matrix, or in those of all experts."""
        return (self.experts or 1) * self.d_in * self.d_out

    @property
    def max_rank(self) -> int:
        """The rank that the matrix itself can have, which limits what is of use to an adapter."""
        return min(self.d_in, self.d_out)


def named_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Full names and modules, the model first; parts that were compiled or wrapped have the names of what is inside."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> None:
        if len(module._modules) == 1 and {"_orig_mod", "module"} & set(module._modules):
            module = unwrapped(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        found[name] = module
        for child_name, child in module.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", model)
    return found


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Full name -> `(d_in, d_out)` of every linear layer of a model, whether it can carry an adapter or not."""
    return {name: shape for name, module in named_parts(model).items() if (shape := _linear_shape(module)) and name}


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """`(d_in, d_out)` of a linear layer (also of quantised subclasses, and of GPT-2's Conv1D), else None."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def find_targets(
    model: nn.Module,
    select: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    target_parameters: str | Sequence[str] | None = None,
) -> tuple[Target, ...]:
    """List the linear layers to adapt, in the model's order, and behind them the parameters of experts.

    Layers that cannot carry an adapter are no targets: those that PEFT refuses (Mamba's `out_proj`) or replaces by parameters
    of experts (every gate, up and down projection of many mixtures of experts, shared and dense ones too), those whose weight
    is read past the layer (an attention of `torch.nn`), that return no single tensor (Llama 4's router), or that share their
    weight with an embedding. One warning names them; where nothing else was asked for, an error does.

    Args:
        model: a transformers model; its weights may be on the meta device. It may be compiled, or wrapped for several devices:
            names are those of the model inside.
        select: None takes every linear layer inside the transformer blocks (the members of a module list of the base
            model: heads, poolers and embeddings are left out). A list takes, as PEFT does, the modules whose full
            name is an entry or ends with `.entry`; a string is a regular expression that must match the full name.
            `"all-linear"` is PEFT's: every linear layer but the output embeddings, or the head of a classifier (whatever
            stands beside the base model, which is trained whole). Empty with `target_parameters`: experts alone.
        exclude_modules: layers that are no targets though `select` takes them: names or their ends, or a regular expression, as
            in PEFT. None excludes none.
        target_parameters: which parameters that hold all experts of a layer are targets too: names or their ends, as PEFT's
            option of that name (`["experts.down_proj"]`), a regular expression, or `"all-experts"`. None takes none.

    Raises:
        TargetError: nothing matches, or an entry of `exclude_modules` matches no linear layer, and the message names the nearest
            modules; everything is excluded; or only layers that cannot be adapted are left.

    """
    found, left_out = _select(model, select, exclude_modules, target_parameters)
    if left_out:
        firsts: dict[str, list[str]] = {}
        for name, reason in left_out.items():
            firsts.setdefault(reason, []).append(name)
        said = "; ".join(
            f"{names[0]!r} {reason}{f' ({len(names) - 1} more alike)' if names[1:] else ''}"
            for reason, names in firsts.items()
        )
        warnings.warn(
            f"{len(left_out)} linear {'layer is' if len(left_out) == 1 else 'layers are'} left out of the targets: {said}",
            LorankWarning,
            stacklevel=2,
        )
    return found


def _select(
    model: nn.Module,
    select: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
    target_parameters: str | Sequence[str] | None,
) -> tuple[tuple[Target, ...], dict[str, str]]:
    """The targets, and the layers that were asked for and cannot be adapted, with the reason."""
    from lorank.unsuitable import unsuitable

    model = unwrapped(model)
    parts, experts = named_parts(model), tuple[Target, ...]()
    if target_parameters is not None:
        chosen = chosen_experts(type(model).__name__, fused_experts(parts), target_parameters)
        experts = tuple(Target(name, *shape) for name, shape in chosen.items())
        if select is not None and not select:
            return experts, {}
    linears = {name: shape for name, module in parts.items() if (shape := _linear_shape(module)) and name}
    asked, problem = _asked(model, parts, linears, select)
    if not asked or not all(asked.values()):
        raise TargetError(f"{problem}{_known_names(linears, select)}")
    if exclude_modules is not None:
        excluded = _excluded(parts, linears, exclude_modules)
        asked = {entry: left for entry, names in asked.items() if (left := [n for n in names if n not in excluded])}
        if not asked:
            raise TargetError("exclude_modules leaves no layer to adapt: every target is excluded; exclude fewer")
    wanted = dict.fromkeys(name for names in asked.values() for name in names)
    parents = {name: parts[parent_of(name)] for name in wanted}
    left_out = unsuitable(model, {name: parts[name] for name in wanted}, parents)
    for entry, names in asked.items():
        if not set(names) - set(left_out):
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise TargetError(
                f"{f'targets {entry!r} match' if entry else type(model).__name__ + ' has'} only layers that cannot be adapted: "
                f"{names[0]!r}{more} {left_out[names[0]]}; name others"
            )
    found = tuple(Target(name, *linears[name]) for name in linears if name in wanted and name not in left_out)
    return found + experts, left_out


def _known_names(linears: Mapping[str, tuple[int, int]], asked: str | Sequence[str] | None) -> str:
    """The end of a message about names that match nothing: the nearest names, and what there is."""
    known = sorted({place.projection for place in places(linears).values()} | {leaf_of(name) for name in linears})
    meant = get_close_matches(asked if isinstance(asked, str) else " ".join(asked or ()), known, 3, 0.6)
    hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
    more = ", ..." if known[12:] else ""
    return f"{hint}; linear layers here are named {', '.join(known[:12]) or 'nothing at all'}{more}"


def _excluded(
    parts: Mapping[str, nn.Module], linears: Mapping[str, tuple[int, int]], exclude_modules: str | Sequence[str]
) -> set[str]:
    """Names of the linear layers that are to be left out.

    Raises:
        TargetError: an entry that matches none.

    """
    if isinstance(exclude_modules, str):
        found = set(matching("exclude_modules", exclude_modules, linears))
        missing = [] if found else [exclude_modules]
    else:
        ends = {entry: [name for name in linears if ends_with(name, entry)] for entry in exclude_modules}
        found = {name for names in ends.values() for name in names}
        missing = [entry for entry, names in ends.items() if not names]
    if not missing:
        return found
    around = next((name for name in parts if name and ends_with(name, missing[0])), None)
    if around and not isinstance(exclude_modules, str):
        raise TargetError(
            f"exclude_modules {missing[0]!r} is a module around linear layers ({around!r}), and entries of a list are linear "
            rf"layers, as in PEFT; for everything in it give a regular expression: .*\b{re.escape(missing[0])}\..*"
        )
    raise TargetError(f"exclude_modules {missing} match no linear layer{_known_names(linears, missing)}")


def _asked(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    linears: Mapping[str, tuple[int, int]],
    select: str | Sequence[str] | None,
) -> tuple[dict[str, list[str]], str]:
    """What was asked for -> names of the linear layers that it means, and what to say where that is none."""
    from torch import nn

    if select is None:
        prefix = getattr(model, "base_model_prefix", "")
        lists = [name for name, module in parts.items() if isinstance(module, nn.ModuleList)]
        chosen = [name for name in linears if is_within(name, lists)]
        if prefix and hasattr(model, prefix):
            chosen = [name for name in chosen if is_within(name, [prefix])]
        return {"": chosen}, f"{type(model).__name__} has no linear layer inside a list of blocks"
    if isinstance(select, str) and select.lower() == ALL_LINEAR:
        heads = {id(part) for head in heads_of(model) for part in head.modules()}
        chosen = [name for name in linears if id(parts[name]) not in heads]
        return {"": chosen}, f"{type(model).__name__} has no linear layer but its head"
    if isinstance(select, str):
        chosen = matching("targets", select, linears)
        return {select: chosen}, f"targets {select!r} matches the full name of no linear layer"
    ends = {entry: [name for name in linears if ends_with(name, entry)] for entry in select}
    missing = [entry for entry, names in ends.items() if not names]
    return ends, f"targets {missing or list(select)} match no linear layer"


def unit_costs(targets: Iterable[Target]) -> dict[str, int]:
    """Module name -> adapter parameters of one unit of rank."""
    return {target.name: target.unit_cost for target in targets}


def chosen_modules(
    targets: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
    target_parameters: str | Sequence[str] | None = None,
) -> dict[str, str | list[str] | None]:
    """How modules were chosen, as provenance says it and `first_difference` reads it: JSON values."""
    more = {"exclude_modules": exclude_modules, "target_parameters": target_parameters}
    given = {"targets": targets} | {key: one for key, one in more.items() if one is not None}
    return {key: one if one is None or isinstance(one, str) else list(one) for key, one in given.items()}


def experts_in(targets: Iterable[Target]) -> dict[str, dict[str, int]]:
    """What scores and plans record under `EXPERTS` in their provenance: parameter -> number of experts; `{}` without any."""
    found = {target.name: target.experts for target in targets if target.experts}
    return {EXPERTS: found} if found else {}


def first_difference(costs: Mapping[str, int], model: nn.Module, provenance: Mapping[str, Any]) -> str | None:
    """How the modules of scores or of a plan differ from a model's, in words; None if they are the same.

    Where the provenance says by which `targets` (and `exclude_modules`) modules were chosen, the model's are chosen alike, so
    that a model with more layers is another model; else the modules need only be among the model's. Those of `left_out` may
    be missing in the file.
    """
    try:
        if "targets" in provenance:
            keys = ("targets", "exclude_modules", "target_parameters")
            found = _select(model, *(provenance.get(key) for key in keys))[0]
        else:
            linears, fused = linear_layers(model).items(), fused_experts(named_parts(model)).items()
            found = (*(Target(name, *of) for name, of in linears), *(Target(name, *shape) for name, shape in fused))
        there = unit_costs(found)
    except TargetError:
        there = {}
    left_out = provenance.get("left_out", ())  # what could not be scored has no rank
    for name in (*costs, *(name for name in there if "targets" in provenance and name not in left_out)):
        if costs.get(name) != there.get(name):
            here, other = (f"of d_in + d_out = {c[name]:,}" if name in c else "missing" for c in (costs, there))
            return f"{name!r} is {here} in the file and {other} in the model"
    return None
