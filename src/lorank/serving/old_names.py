"""Adapters whose modules are called as an earlier transformers called them: PEFT renames them on loading, and so do we."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lorank.errors import AdapterError
from lorank.module_names import PEFT_PREFIX, expert_of, in_base_model
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers


def with_present_names(adapter: AdapterFiles, base: BaseLayers) -> AdapterFiles:
    """The adapter with the names that its base model has today; the same one where it has them already.

    transformers 4.52 moved the language model of vision-language models, for one: `language_model.model.layers...` is
    `model.language_model.layers...` since. PEFT maps tensors, and matches patterns with the present names.

    Raises:
        AdapterError: patterns of the config that name modules as before, which PEFT no longer matches.

    """
    unknown = [module for module in adapter.pairs if module not in base.shapes and not expert_of(module)]
    present = _present_names(unknown, base.build()) if unknown and base.build is not None else {}
    present = {old: new for old, new in present.items() if new in base.shapes and new not in adapter.pairs}
    if not present:
        return adapter
    renamed = replace(adapter, pairs={present.get(module, module): pair for module, pair in adapter.pairs.items()})
    for old, new in present.items():
        for field, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            default = adapter.config[default]
            if adapter.pattern(field, old, default) != renamed.pattern(field, new, default):
                raise AdapterError(
                    f"{adapter.folder}: {field} names {old!r}, which {base.name} now has as {new!r}, so PEFT does not match it; "
                    f"put the present names into {field} of adapter_config.json"
                )
    return renamed


def _present_names(modules: Iterable[str], model: Any) -> dict[str, str]:
    """Name in the file -> name in the model, by the conversion that PEFT itself applies when it loads an adapter."""
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    names = {}
    for module in modules:
        weights = {f"{PEFT_PREFIX}{module}.lora_{part}.weight": torch.empty(1, 1) for part in "AB"}
        converted = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), weights)
        found = {in_base_model(key).partition(".lora_")[0] for key in converted}
        if len(found) == 1:
            names[module] = found.pop()
    return names
