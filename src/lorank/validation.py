"""What pydantic found wrong, in words: the key, what is allowed, what was got, and the nearest valid key."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lorank.errors import in_short, shown

# Names that other tools give to keys of recipes (Trainer, TRL, PEFT, axolotl), which no likeness of letters finds.
_CALLED_ELSEWHERE = {
    "lr": "learning_rate",
    **dict.fromkeys(("num_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("micro_batch_size", "per_device_train_batch_size"), "batch_size"),
    "gradient_accumulation_steps": "gradient_accumulation",
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "warmup"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type"), "scheduler"),
    "optim": "optimizer",
    **dict.fromkeys(("sequence_len", "max_seq_length", "max_seq_len"), "max_length"),
    **dict.fromkeys(("r", "rank", "lora_r", "target_r", "target_rank", "target_total_rank"), "budget"),
    **dict.fromkeys(("alpha", "lora_alpha"), "scale"),
    **dict.fromkeys(("eval_split", "val_set_size"), "eval"),
    "eval_steps": "eval_every",
    "early_stopping_patience": "patience",
    # AdaLoRA's, as PEFT names them.
    **{
        "init_r": "initial_rank",
        "tinit": "begin",
        "tfinal": "end",
        "deltaT": "interval",
        "orth_reg_weight": "orthogonality",
    },
    "load_in_4bit": "quantization",
    **dict.fromkeys(("bf16", "fp16"), "precision"),
    "lora_target_modules": "target_modules",
}


# What the other name means is not quite what the key means.
_SAYS = {
    "scale": ", which is alpha / r",
    "budget": ", such as r=8",
    "cut.begin": ", no cut before it",
    "cut.end": ", the last cut, counted from the beginning",
}
# What has no key here.
_NO_KEY = dict.fromkeys(
    ("eval_batch_size", "per_device_eval_batch_size"),
    "; the loss on data.eval is measured with train.batch_size, leave it out",
)


class Section(BaseModel):
    """Options: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _listed(value: Any) -> Any:
    if value == [] or value == ():
        raise ValueError("the list is empty; give one name at least, or leave it out")
    return [value] if isinstance(value, str) else value


# Names in a list, or one name alone.
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


def explain(error: ValidationError, section: type[BaseModel], also: Iterable[str] = ()) -> str:
    """What is wrong with options of `section`: one line for each key; the forms that a value may have are put together.

    Args:
        error: pydantic's.
        section: what was validated.
        also: keys beside those of `section` that an unknown one may be meant as.

    """
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        key, reason, got = _explain(problem, section, also)
        reasons = lines.setdefault(f"{key}|{got}", [])
        if reason not in reasons:
            reasons.append(reason)
    return "\n".join(
        f"{line.partition('|')[0]}: {' or '.join(reasons)}{line.partition('|')[2]}" for line, reasons in lines.items()
    )


def _explain(problem: Any, section: type[BaseModel], also: Iterable[str]) -> tuple[str, str, str]:
    """Turn one pydantic problem into: key, what is allowed, what was got."""
    forms = ("function-", "tuple[", "constrained-", "literal[", "lax-", "union[")
    location = [in_short(str(part)) for part in problem["loc"] if not str(part).startswith(forms)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = [*_known_keys(section), *also]
        if elsewhere := [known_key for known_key in known if known_key.rpartition(".")[2] == location[-1]]:
            return key, f"unknown key (did you mean {min(elsewhere, key=lambda one: one.count('.'))}?)", ""
        siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
        return key, f"unknown key{nearest(key, siblings) or nearest(location[-1], known)}", ""
    if problem["type"] == "missing":
        return key, "missing; every recipe needs it", ""
    reason = problem["msg"].removeprefix("Value error, ").replace("\n", f"\n{key}: ")
    reason = reason.replace("a valid tuple", "a list, [one, two]")
    got = "" if problem["type"] == "value_error" else f" (got {shown(problem['input'], 200)})"
    return key or "recipe", reason, got


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, f"{prefix}{name}.")
    return keys


def nearest(got: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing; a key's last part alone may match too, and what other tools call it."""
    tail = got.rpartition(".")[2]
    if tail in _NO_KEY:
        return _NO_KEY[tail]
    name, near = _CALLED_ELSEWHERE.get(tail), meant_by(got, known)
    return f" (did you mean {near}{_SAYS.get(near, '') if name else ''}?)" if near else ""


def meant_by(got: str, known: Iterable[str]) -> str | None:
    """The known key that an unknown one was probably meant as; of what other tools call something, no key but that."""
    options, tail = list(known), got.rpartition(".")[2]
    if name := _CALLED_ELSEWHERE.get(tail):
        return next((option for option in options if option.rpartition(".")[2] == name), None)
    if near := get_close_matches(got, options, 1, 0.6):
        return near[0]
    tails = {option.rpartition(".")[2]: option for option in reversed(options)}  # of equal ones the first
    return next((tails[near] for near in get_close_matches(tail, list(tails), 1, 0.6)), None)


def first_difference(before: Any, now: Any, key: str = "") -> str | None:
    """Name the first place where two nested mappings differ, or None."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in (*now, *(set(before) - set(now))):
            if found := first_difference(before.get(name), now.get(name), f"{key}.{name}".strip(".")):
                return found
        return None
    return None if before == now else f"{in_short(key, 200)} was {shown(before, 200)}, now {shown(now, 200)}"
