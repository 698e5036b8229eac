"""What adapter_config.json may say: checked before anything is computed from it."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from lorank.artefact import read_json
from lorank.errors import AdapterError, one_line
from lorank.received_files import check_adapter_folder
from lorank.serving.peft_rules import check_choice
from lorank.untrusted.expressions import check_time, compiled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Starts after which the base model is the one that was loaded; others (PiSSA, OLoRA, CorDA, LoftQ) change it on loading.
_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_FEATURES = {
    "use_dora": "DoRA, whose weights are no low-rank sum",
    "lora_bias": "a bias inside of the adapter",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "expert tensors in place of layers, which vLLM and SGLang are reported to drop or to fail on",
    "alora_invocation_tokens": "activated LoRA, which is on for a part of the text only",
}


class NotPlainError(AdapterError):
    """A PEFT adapter that is more than, or something else than, `W + s B A`; PEFT itself may load and merge it."""


def _expression(text: str) -> str:
    try:
        compiled(text)
    except ValueError as error:
        raise ValueError(f"{_short(text)} is not a regular expression ({error})") from None
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Rank = Annotated[StrictInt, Field(ge=1)]
Alpha = Annotated[StrictInt | StrictFloat, Field(ge=0, lt=1e30)]  # above, products of scales are no numbers


class _Fields(BaseModel):
    """The fields that are read, and their types."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    r: Rank
    lora_alpha: Alpha
    rank_pattern: dict[Expression, Rank] | None = None
    alpha_pattern: dict[Expression, Alpha] | None = None
    target_modules: list[str] | Expression | None = None
    exclude_modules: list[str] | Expression | None = None
    modules_to_save: list[Expression] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[Expression] | Expression | None = None
    task_type: str | None = None
    bias: str | None = None
    base_model_name_or_path: str | None = None


def read_config(folder: Path, *, experts: bool = False) -> dict[str, Any]:
    """Read and check a LoRA's config; what no field of ours is about is kept as it is.

    Args:
        folder: of the adapter.
        experts: whether parameters of fused experts (`target_parameters`) may have adapters, which no engine serves.

    Raises:
        NotPlainError: another PEFT type, or a LoRA that is more than `W + s B A`.
        AdapterError: no such folder, a link out of it, damaged, a field of another type.

    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(_no_config(folder))
    check_adapter_folder(folder)
    try:
        config = read_json(path)
        json.dumps(config, ensure_ascii=False).encode()  # half characters can be read, and not written again
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path}: damaged or not JSON ({error}); take it from the training again") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise AdapterError(f"{path}: JSON, but not the config of a PEFT adapter (no peft_type)")
    if config["peft_type"] != "LORA":
        raise NotPlainError(
            f"{path}: peft_type is {config['peft_type']!r}, only LORA can be served as one; make a LoRA of it first "
            "(peft.convert_to_lora), or add it to its base model (lorank merge)"
        )
    try:
        _Fields(**config)
        check_choice(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][:2] if "pattern" in str(first["loc"][0]) else first["loc"][:1]))
        raise AdapterError(f"{path}: {where} is {_short(first['input'])}: {first['msg']}; put it right") from None
    except ValueError as error:
        raise AdapterError(f"{path}: {one_line(error)}") from None
    for key, what in _FEATURES.items():
        if config.get(key) and not (experts and key == "target_parameters"):
            raise NotPlainError(
                f"{path}: {key} is on: {what}; only W + s B A can be served as an adapter; add it to its base model: lorank merge"
            )
    if (config.get("bias") or "none") != "none":
        raise NotPlainError(
            f"{path}: bias is {config['bias']!r}: biases of the base model were trained; add it to its base model (lorank merge)"
        )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _STARTS:
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r}, which changes the base weights on loading; save it with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )
    return config


def check_expressions(config: Mapping[str, Any], modules: Collection[str], folder: Path) -> None:
    """Refuse an adapter in whose config an expression takes too long on the names of its modules.

    Raises:
        AdapterError: names the expression.

    """
    fields = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
    given = [config.get(field) or () for field in fields]
    try:
        check_time((text for texts in given for text in ([texts] if isinstance(texts, str) else texts)), modules)
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG}: {error}; do not load it elsewhere either") from None


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a very large number"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _no_config(folder: Path) -> str:
    """What is there in place of an adapter."""
    if not folder.exists():
        return f"{folder}: no such folder (looked in {Path.cwd()}); give the folder of a PEFT adapter"
    if not folder.is_dir():
        return f"{folder} is a file; give the folder of a PEFT adapter"
    if inside := sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")):
        return f"{folder} has no {CONFIG}, but {inside[-1]} in it does: give {folder / inside[-1]}"
    if (folder / "config.json").is_file():
        return f"{folder} has no {CONFIG}: it is a whole model; give the folder of a PEFT adapter"
    return f"{folder} has no {CONFIG}; give the folder of a PEFT adapter"
