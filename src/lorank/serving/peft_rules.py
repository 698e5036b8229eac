"""What PEFT makes of adapter_config.json: its own rules, written again so that reading an adapter need not wait for PEFT.

Tests compare each with PEFT's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorank.module_names import shorter_ends


def pattern_key(keys: Iterable[str], module: str) -> str:
    """The first key of `rank_pattern` or `alpha_pattern` that means a module; the module's own name where none does.

    A key is a regular expression for the end of a full name, from a dot on. As `peft.utils.other.get_pattern_key`.

    Example:
        >>> pattern_key(["proj", "0.q_proj"], "layers.0.q_proj")
        '0.q_proj'

    """
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", module)), module)


def check_choice(config: Mapping[str, Any]) -> None:
    """Refuse choices of modules that contradict each other, as `peft.LoraConfig` does.

    Raises:
        ValueError: in PEFT's words.

    """
    targets, layers, pattern = (config.get(key) for key in ("target_modules", "layers_to_transform", "layers_pattern"))
    for key, value in (("layers_to_transform", layers), ("layers_pattern", pattern)):
        if isinstance(targets, str) and value is not None:
            raise ValueError(f"`{key}` cannot be used when `target_modules` is a str.")
    if pattern and layers is None:
        raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")


def adapted_by(config: Mapping[str, Any], modules: Iterable[str]) -> list[str]:
    """Those of the modules that a config's choice means; as `peft.tuners.tuners_utils.check_target_module_exists`.

    A string is a regular expression for the whole name. An entry of a list is a name, or its end from a dot on. What
    `modules_to_save` names is not looked at.

    Args:
        config: with `target_modules`; `exclude_modules`, `layers_to_transform` and `layers_pattern` may be there.
        modules: full names.

    """
    targets, excluded = (
        entries if isinstance(entries, str) else frozenset(entries or ())
        for entries in (config["target_modules"], config.get("exclude_modules") or ())
    )
    found = [module for module in modules if _means(targets, module) and not _means(excluded, module)]
    if isinstance(targets, str):
        return found
    return [module for module in found if module in targets or _is_in_layers(config, module)]


def _means(entries: str | frozenset[str], module: str) -> bool:
    if isinstance(entries, str):
        return re.fullmatch(entries, module) is not None
    return module in entries or any(end in entries for end in shorter_ends(module))


def _is_in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Whether a module is in one of the layers that are given by their numbers; without any, every module is."""
    layers, given = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    starts = [rf"(?:^|.*?\.){pattern}" for pattern in ([given] if isinstance(given, str) else given)]
    for start in starts or [r".*?\.[^.]*"]:
        if found := re.match(rf"{start}\.(?P<idx>\d+)\.", module):
            return int(found["idx"]) in ([layers] if isinstance(layers, int) else layers)
    return False
