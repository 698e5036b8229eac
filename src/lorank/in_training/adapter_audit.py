"""Whether the adapter that was saved is the one that was trained: the plan's modules and shapes, and no B that was lost."""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import nn

from lorank.adapter.adapted_part import base_of
from lorank.errors import AdapterError
from lorank.experts import adapted_name
from lorank.module_names import factor_of, in_base_model
from lorank.plan import RankPlan
from lorank.report.adapter_card import write_adapter_card
from lorank.report.markdown import prose
from lorank.report.model_card import CARD
from lorank.serving.adapter_config import WEIGHTS
from lorank.serving.saved_adapter import FactorShapes, check_factors


def audit_saves(part: nn.Module, plan: RankPlan, adapter_name: str = "default", made: Sequence[str] = ()) -> None:
    """Have `part.save_pretrained` look at the file that it has written, and write its card; whoever calls it, Trainers included.

    Args:
        part: carries the plan's adapter as a plain LoRA (`adapted_part`).
        plan: ranks of its modules. Where the model has other ranks by then, nothing is looked at: they are its owner's choice.
        adapter_name: PEFT's.
        made: how the adapter was made, for its card.

    """
    replaced = vars(part).get("save_pretrained")
    own = None if isinstance(replaced, functools.partial) else replaced  # of an earlier plan
    # A partial of the model, and no closure: a deep copy of the model saves the copy.
    part.save_pretrained = functools.partial(_save_and_check, part, plan, adapter_name, own, made)  # type: ignore[assignment]


def check_saved(folder: Path, plan: RankPlan, part: nn.Module, adapter_name: str = "default") -> None:
    """Compare an adapter's file with the plan, and with the model that it was saved from.

    Raises:
        AdapterError: no file, or one that is damaged; a module that is missing or too many; a tensor of another shape than the
            plan's (a shard, say); a B of zeros where the model's is not.

    """
    layers = _layers(part, adapter_name)
    names = {name: adapted_name(name, layer) for name, layer in layers.items()}
    held, lost = dict[str, FactorShapes](), []
    trained = {name for name, layer in layers.items() if bool(layer.lora_B[adapter_name].weight.any())}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if (pair := factor_of(key)) is None:
                    continue
                module, shape = in_base_model(pair[0]), tuple(file.get_slice(key).get_shape())
                of_plan = names.get(module, module)
                factor = {"a": shape} if "lora_A" in key else {"b": shape}
                held[of_plan] = held.get(of_plan, FactorShapes())._replace(**factor)
                if "b" in factor and module in trained and not bool(file.get_tensor(key).any()):
                    lost.append(of_plan)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: damaged or missing ({error}); save the adapter again") from None
    check_factors(folder / WEIGHTS, held, plan)
    if lost:
        raise AdapterError(
            f"{folder / WEIGHTS} is not the adapter that was trained: B of {lost[0]!r} is zero in it, and not in the model. Save "
            "it from a model that is whole on this process, after training has ended; under FSDP on every process, by "
            "trainer.save_model"
        )


def _save_and_check(
    part: Any,
    plan: RankPlan,
    adapter_name: str,
    own: Any,
    made: Sequence[str],
    save_directory: Any,
    *args: Any,
    **options: Any,
) -> Any:
    save = functools.partial(type(part).save_pretrained, part) if own is None else own
    # PEFT has a folder for each adapter but the one that it calls "default"; transformers saves one adapter.
    places = [Path(save_directory, adapter_name), Path(save_directory)][adapter_name == "default" :]
    cards = {place: (place / CARD).read_text("utf-8", "replace") for place in places if (place / CARD).is_file()}
    result = save(save_directory, *args, **options)
    said = inspect.signature(save).bind_partial(save_directory, *args, **options).arguments
    ours = said.get("selected_adapters") is None or adapter_name in said["selected_adapters"]
    as_it_is = said.get("path_initial_model_for_weight_conversion") is None  # else PEFT saves another adapter
    written = said.get("is_main_process", True) and said.get("safe_serialization", True) and ours and as_it_is
    if written and _ranks(part, adapter_name) == {name: rank for name, rank in plan.ranks.items() if rank}:
        folder = next(place for place in places if place.is_dir())
        check_saved(folder, plan, part, adapter_name)
        if isinstance(part, PeftModel):
            labels = getattr(getattr(part, "config", None), "num_labels", 1)
            write_adapter_card(folder, plan, list(map(prose, made)), num_labels=labels, before=cards.get(folder))
    return result


def _ranks(part: nn.Module, adapter_name: str) -> dict[str, int]:
    layers = _layers(part, adapter_name)
    return {adapted_name(name, layer): int(layer.r[adapter_name]) for name, layer in layers.items()}


def _layers(part: nn.Module, adapter_name: str) -> dict[str, Any]:
    """Module name -> its LoRA layer, of those that carry the adapter."""
    layers = ((name, each) for name, each in base_of(part).named_modules() if isinstance(each, LoraLayer))
    return {name: each for name, each in layers if adapter_name in each.lora_A}
