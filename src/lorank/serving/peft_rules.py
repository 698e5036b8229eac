"""What PEFT makes of adapter_config.json: its own rules, written again so that reading an adapter need not wait for PEFT.

Tests compare each with PEFT's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any


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


def is_adapted(config: Mapping[str, Any], module: str) -> bool:
    """Whether a config's choice means a module; as `peft.tuners.tuners_utils.check_target_module_exists`.

    A string is a regular expression for the whole name. An entry of a list is a name, or its end from a dot on. What
    `modules_to_save` names is not looked at.

    Args:
        config: with `target_modules`; `exclude_modules`, `layers_to_transform` and `layers_pattern` may be there.
        module: its full name.

    """
    targets, excluded = config["target_modules"], config.get("exclude_modules")
    if excluded and _means(excluded, module):
        return False
    if isinstance(targets, str) or module in targets:
        return _means(targets, module)
    return _means(targets, module) and _is_in_layers(config.get("layers_to_transform"), config, module)


def _means(entries: str | Iterable[str], module: str) -> bool:
    if isinstance(entries, str):
        return re.fullmatch(entries, module) is not None
    return any(module == entry or module.endswith(f".{entry}") for entry in entries)


def _is_in_layers(layers: int | list[int] | None, config: Mapping[str, Any], module: str) -> bool:
    """Whether a module is in one of the layers that are given by their numbers; without any, every module is."""
    if layers is None or layers == []:
        return True
    given = config.get("layers_pattern") or []
    starts = [rf"(?:^|.*?\.){pattern}" for pattern in ([given] if isinstance(given, str) else given)]
    for start in starts or [r".*?\.[^.]*"]:
        if found := re.match(rf"{start}\.(?P<idx>\d+)\.", module):
            return int(found["idx"]) in ([layers] if isinstance(layers, int) else layers)
    return False
