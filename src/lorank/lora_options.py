"""Which options of PEFT's LoraConfig leave a plan what it is: its parameters, to the last one, are all that adapters train."""

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from lorank.errors import LorankWarning, PlanError
from lorank.module_names import is_saved_by, places, shorter_ends
from lorank.unsuitable import forbidden_by_peft
from lorank.validation import nearest

DECIDED = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
# Neither the number of trained parameters nor where they are depends on these.
_FREE = {
    "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "fan_in_fan_out", "inference_mode", "init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "trainable_token_indices", "velora_config",
}  # fmt: skip
_OTHER_MODULES = "chooses other modules than the plan; give rank 0 to what is to have no adapter"
_REFUSED = {
    "use_dora": "trains a magnitude for every output beside A and B",
    "lora_bias": "trains a bias beside A and B",
    "target_parameters": "adapts tensors that are not in the plan",
    "layer_replication": "adapts copies of layers, so the plan would be spent several times",
    "use_bdlora": "trains blocks of A or B only, fewer parameters than the plan's",
    "use_qalora": "trains an A for groups of inputs, fewer parameters than the plan's",
    "arrow_config": "routes between other adapters and trains none",
    "kasa_config": "trains singular values beside A and B, and changes the base weights",
    "monteclora_config": "trains variances beside A and B",
    "exclude_modules": _OTHER_MODULES,
    "layers_to_transform": _OTHER_MODULES,
    "layers_pattern": _OTHER_MODULES,
}  # fmt: skip
# PEFT trains these beside the adapters of the task type, as if named in modules_to_save.
_TRAINED_WHOLE = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options under which PEFT would train other parameters than a plan says.

    Raises:
        PlanError: names the option and why.

    """
    from peft import LoraConfig

    if decided := sorted(set(DECIDED) & set(options)):
        raise PlanError(f"{', '.join(decided)} is decided by the plan; leave it out (scale is a field of the plan)")
    defaults = {
        each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for each in dataclasses.fields(LoraConfig)
    }
    for name, value in options.items():
        if name not in defaults:
            raise PlanError(f"{name} is no option of PEFT's LoraConfig{nearest(name, defaults)}")
        if name in _FREE or value == defaults[name] or (name in _REFUSED and not value):
            continue
        why = _REFUSED.get(name, "is not known to leave the plan's parameters as they are, in this version of PEFT")
        raise PlanError(f"{name}={value!r} {why}; leave it out")
    if options.get("bias", "none") != "none":
        raise PlanError(f"bias={options['bias']!r} trains biases that are not in the plan's budget; leave it at 'none'")
    if options.get("inference_mode"):
        raise PlanError("inference_mode=True makes an adapter that does not train; leave it out")
    _check_start(options)
    if tokens := options.get("trainable_token_indices"):
        kinds = tokens.values() if isinstance(tokens, Mapping) else (tokens,)
        warnings.warn(
            f"trainable_token_indices trains {sum(len(each) for each in kinds)} rows of embeddings whole beside the plan's "
            "adapters; like modules_to_save they are no adapter parameters and not in its budget",
            LorankWarning,
            stacklevel=3,
        )


def check_with_experts(options: Mapping[str, Any], experts: Iterable[str]) -> None:
    """Refuse options that PEFT cannot have on parameters of fused experts.

    Raises:
        PlanError: names the option and the first parameter.

    """
    name = next(iter(experts), None)
    if name is None:
        return
    for option in ("lora_dropout", "fan_in_fan_out", "velora_config"):
        if options.get(option):
            raise PlanError(
                f"{option}={options[option]!r} cannot be had for parameters of experts ({name!r}), in PEFT; leave it out"
            )
    start = options.get("init_lora_weights", True)
    if start not in (True, False, "gaussian"):
        raise PlanError(
            f"init_lora_weights={start!r} reads the weight of a linear layer, and {name!r} is one of experts; leave it out"
        )


def _check_start(options: Mapping[str, Any]) -> None:
    start = options.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() == "mica":
        raise PlanError(
            f"init_lora_weights={start!r} trains A alone, fewer parameters than the plan's; use another start"
        )
    if start == "eva":
        given = options.get("eva_config")
        rho = given.get("rho") if isinstance(given, Mapping) else getattr(given, "rho", None)
        if rho != 1:
            raise PlanError(
                f"init_lora_weights='eva' with rho {'left out (2)' if rho is None else format(rho, 'g')} gives ranks of its own; "
                "use eva_config=EvaConfig(rho=1)"
            )


def check_modules(
    adapted: Mapping[str, int],
    without: Iterable[str],
    options: Mapping[str, Any],
    model_type: str | None,
    experts: Iterable[str] = (),
) -> None:
    """Refuse modules that PEFT would not adapt as the plan says.

    Args:
        adapted: modules that have a rank, and the rank.
        without: modules of rank 0.
        options: of the LoraConfig.
        model_type: as the plan recorded it; None where it did not.
        experts: those of the names that are parameters of fused experts.

    Raises:
        PlanError: names the first module and why.

    """
    if options.get("init_lora_weights") == "orthogonal" and (
        odd := next((n for n, r in adapted.items() if r % 2), None)
    ):
        raise PlanError(
            f"init_lora_weights='orthogonal' needs even ranks, and {odd!r} has {adapted[odd]}; allocate with multiple_of=2, or "
            "use another start"
        )
    if why := forbidden_by_peft([name for name in adapted if name not in set(experts)], model_type):
        name = next(iter(why))
        raise PlanError(
            f"{len(why)} of the plan's modules cannot be adapted: {name!r} {why[name]}; score again, this lorank leaves them out"
        )
    for name in without:  # PEFT takes an entry for the end of a name, too
        if end := next((end for end in shorter_ends(name) if end in adapted), None):
            raise PlanError(f"{name!r} has rank 0, but PEFT would adapt it as it ends with {end!r}; give it a rank")
    task = options.get("task_type")
    whole = _TRAINED_WHOLE.get(str(getattr(task, "value", task)), ())
    for module in (*(options.get("modules_to_save") or ()), *whole):
        if inside := next((name for name in adapted if is_saved_by(name, module)), None):
            raise PlanError(
                f"{module!r} is trained whole (modules_to_save, or the head of the task type), and PEFT would leave out the "
                f"plan's {inside!r}, which is part of it; name modules to save in full"
            )
    outside = next((name for name, place in places(adapted).items() if place.layer is None), None)
    if options.get("ensure_weight_tying") and outside:
        raise PlanError(f"ensure_weight_tying=True may adapt an embedding beside the plan's {outside!r}; leave it out")


def exactly(name: str) -> str:
    """The pattern key that matches one full module name: `^full.module.name$`."""
    # PEFT reads it as a regular expression; dots stay as they are, since a dot matches itself and names stay readable.
    return f"^{re.escape(name)}$".replace(r"\.", ".").replace(r"\-", "-")


def whole(alpha: float) -> float | int:
    """Alpha as PEFT's config holds it: a whole number where it is one."""
    # Ollama reads lora_alpha as an unsigned integer, so a whole number is written as one.
    return int(alpha) if float(alpha).is_integer() else alpha
