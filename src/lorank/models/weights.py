"""Whether a loaded model has the weights of its checkpoint: only a head may be new, or of another size."""

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from lorank.errors import LorankError, LorankWarning, RecipeError, one_line
from lorank.module_names import has_part, is_within, shorter_ends, without_numbers, without_wrappers

_ROOM = 10**8  # parameters that a checkpoint need not have: heads, rows of new tokens
_PER_BYTE = 8  # parameters, where they are packed to single bits


def check_stored_size(model: nn.Module, name: str) -> None:
    """Refuse a model that is much larger than the weights in its folder: all of that would be made first, and then be refused.

    Args:
        model: on the meta device.
        name: folder; a hub name, or a folder without weights, is not looked at.

    Raises:
        ValueError: says both sizes.

    """
    folder = Path(name)
    files = (
        [path for kind in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(kind)]
        if os.path.isdir(name)
        else []
    )
    held, count = sum(path.stat().st_size for path in files), sum(each.numel() for each in model.parameters())
    if files and count > _PER_BYTE * held + _ROOM:
        raise ValueError(f"its config describes {count:,} parameters, and its weights have {held:,} bytes")


def check_headers(name: str) -> None:
    """Refuse a folder with weights that are cut off or no safetensors: what can be seen without reading them.

    Raises:
        ValueError: names the file.

    """
    for path in sorted(Path(name).glob("*.safetensors")) if os.path.isdir(name) else ():
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path.name} is damaged ({one_line(error)})") from None


def check_loaded(
    model: nn.Module,
    loading: Mapping[str, Any],
    name: str,
    *,
    heads: Sequence[str] = (),
    error: type[LorankError] = RecipeError,
) -> None:
    """Refuse a model with weights that are random where the checkpoint should have given them.

    Args:
        model: as it was loaded.
        loading: what `from_pretrained(..., output_loading_info=True)` gave beside it.
        name: of the checkpoint.
        heads: names of modules that may be new; poolers may be missing too.
        error: what is raised.

    Raises:
        LorankError: of class `error`, with the first weight that is missing, of another shape, or under another name.

    Warns:
        LorankWarning: the checkpoint has layers that the model leaves out.

    """
    order = {key: place for place, key in enumerate(model.state_dict())}
    missing = sorted(loading["missing_keys"], key=lambda key: (order.get(key, len(order)), key))
    shapes = {key: (stored, own) for key, stored, own in loading["mismatched_keys"]}
    unexpected, prefix = sorted(loading["unexpected_keys"]), getattr(model, "base_model_prefix", "")
    for key in sorted(shapes, key=lambda key: order.get(key, len(order))):
        if not is_within(key, heads):
            stored, own = (tuple(shape) for shape in shapes[key])
            raise error(
                f"model: {name!r} has {key!r} in shape {stored}, its config says {own}; only a head may differ in size: mend the "
                "config, or give another model"
            )
    for key in missing:
        if other_name := _under_another_name(key, unexpected, prefix):
            raise error(
                f"model: {name!r} has the weight {key!r} as {other_name!r}: it was saved from a wrapped model (torch.compile, "
                "DataParallel, a part of another model); save the model itself, or rename the weights"
            )
        if not is_within(key, heads) and not has_part(key, "pooler"):
            of_the_base = heads or is_within(key, [prefix])
            reason = "; only a head may be new:" if of_the_base else ", so it cannot write;"
            raise error(f"model: {name!r} has no weights for {key!r}{reason} give another one")
    if left := _layers_left_out(unexpected, order):
        warnings.warn(
            f"model: {name!r} has weights that its config leaves out, {left!r} first: the model has fewer layers than its "
            "checkpoint",
            LorankWarning,
            stacklevel=3,
        )


def _under_another_name(key: str, unexpected: Sequence[str], prefix: str) -> str | None:
    """The checkpoint's weight that has this name but for what wrapping a model puts into names."""
    return next((name for name in unexpected if without_wrappers(name, prefix) == without_wrappers(key, prefix)), None)


def _layers_left_out(unexpected: Sequence[str], own: Collection[str]) -> str | None:
    """The first weight that is of a numbered layer like those of the model, but of a further one."""
    known = {alike for key in own if (alike := without_numbers(key))}
    known |= {next(shorter_ends(key)) for key in known}  # a base model's own names have no prefix
    return next((key for key in unexpected if without_numbers(key) in known), None)
