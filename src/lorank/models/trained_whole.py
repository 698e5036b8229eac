"""Modules of the base model that train whole beside the adapters: which ones a recipe means, and their copies in fp32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from lorank.errors import RecipeError
from lorank.models.base_dtype import NARROW, is_narrow, narrow_outputs, widen_inputs
from lorank.module_names import ends_with, is_within, leaf_of
from lorank.validation import nearest

_KEY = "model.modules_to_save"


@dataclass(frozen=True)
class TrainedWhole:
    """Modules of a base model that train whole, heads of classifiers not among them.

    Attributes:
        names: full names.
        tied: whether the input embedding is one of them and output layers share its weight: they follow it.
        parameters: of all of them.

    """

    names: tuple[str, ...] = ()
    tied: bool = False
    parameters: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """What PEFT's config needs for it besides the names."""
        return {"ensure_weight_tying": True} if self.tied else {}


def trained_whole(model: nn.Module, entries: Sequence[str] | None, heads: Sequence[str] = ()) -> TrainedWhole:
    """Find the modules that a recipe's `modules_to_save` names: by their full names, or the ends of these.

    An output layer that shares the weight of the input embedding trains with it, as one: PEFT's `ensure_weight_tying`.

    Args:
        model: may be on the meta device.
        entries: of the recipe.
        heads: full names of the classifier's heads, which train whole in any case.

    Raises:
        RecipeError: an entry that matches no module, one without parameters, one around another, or a weight that PEFT cannot
            keep tied.

    """
    parts = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for entry in entries or ():
        meant = {name: parts[name] for name in parts if name and ends_with(name, entry)}
        if not meant:
            holding = [name for name, part in parts.items() if any(True for _ in part.parameters(recurse=False))]
            raise RecipeError(
                f"{_KEY}: {entry!r} is no module of {type(model).__name__}{nearest(entry, [*map(leaf_of, holding), *holding])}"
            )
        for name, part in meant.items():
            if next(part.parameters(), None) is None:
                raise RecipeError(f"{_KEY}: {name!r} has no parameters; leave it out")
        found |= {name: part for name, part in meant.items() if not is_within(name, heads)}
    found, tied = _tied_as_one(parts, found, model)
    for name in found:
        if around := next((other for other in found if other != name and is_within(name, [other])), None):
            raise RecipeError(f"{_KEY}: {around!r} has {name!r} in it; name one of the two")
        if other := next((each for each in parts if each.endswith(name) and each != name and each not in found), None):
            raise RecipeError(f"{_KEY}: PEFT would take {other!r} too, which ends with {name!r}; name it as well")
    counted = {id(parameter): parameter.numel() for part in found.values() for parameter in part.parameters()}
    return TrainedWhole(tuple(found), tied, sum(counted.values()))


def _tied_as_one(
    parts: Mapping[str, nn.Module], found: dict[str, nn.Module], model: Any
) -> tuple[dict[str, nn.Module], bool]:
    """The modules with the input embedding in place of those that share its weight, and whether there is one."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return found, False
    weight = getattr(table, "weight", None)
    sharing = {
        name: part for name, part in parts.items() if getattr(part, "weight", None) is weight and weight is not None
    }
    touched = next((name for name, part in found.items() if any(one is weight for one in part.parameters())), None)
    if touched is None or len(sharing) < 2:
        return found, False
    first = next(name for name, part in sharing.items() if part is table)
    others = [name for name in sharing if name != first]
    if touched not in sharing or any(not isinstance(sharing[name], nn.Linear) for name in others):
        raise RecipeError(
            f"{_KEY}: {touched!r} shares a weight with {', '.join(map(repr, others))}, which PEFT cannot keep tied in this "
            "model; leave it out"
        )
    kept = {first: table} | {name: part for name, part in found.items() if name not in sharing}
    return kept, True


def check_not_quantised(model: nn.Module, whole: TrainedWhole) -> None:
    """Refuse a module whose weights a quantised checkpoint has packed.

    Raises:
        RecipeError: names it.

    """
    for name in whole.names:
        if any(not parameter.is_floating_point() for parameter in model.get_submodule(name).parameters()):
            raise RecipeError(f"{_KEY}: {name!r} is quantised in the checkpoint, and cannot train whole; leave it out")


def train_copies_in_fp32(model: PeftModel) -> None:
    """Turn the copies that PEFT trains of modules in bf16 or fp16 into fp32, in place.

    They take what the base gives them, and give it back in its dtype. The base keeps its own module as it is.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and is_narrow(module.original_module):
            dtype = next(p.dtype for p in module.original_module.parameters() if p.dtype in NARROW)
            for copy in module.modules_to_save.values():
                copy.to(torch.float32)
                widen_inputs(copy)
                narrow_outputs(copy, dtype)
