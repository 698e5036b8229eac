"""Recipes of format 1: what their keys are called now."""

from collections.abc import Mapping
from typing import Any

from lorank.engine.options import (
    CurveOptions,
    DeviationOptions,
    RankOptions,
    RunningOptions,
    ScoringSetOptions,
    TrainingBatchOptions,
    TripletOptions,
)
from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.methods.choose import choices_in, preset_of
from lorank.methods.registry import unknown_method
from lorank.recipe.method_sections import merged
from lorank.recipe.sections import (
    CHOICES,
    EXPERT,
    CalibrationSet,
    InitialRank,
    PlanScale,
    ScoringSet,
    TrainingSection,
    looks_at_calibration_set,
    section_kinds,
    written_key,
)
from lorank.scoring.options import HessianOptions, InputVarianceOptions
from lorank.validation import Section, nearest

# Sections and keys that only format 1 has.
SECTIONS = ("scoring", "calibration", "allocation", "pruning", "stage1", "stage2")
KEYS = {"targets": "target_modules", "model_dropout": "model.dropout", "trust_remote_code": "model.trust_remote_code"}
_DEFAULTS = {key: info.default for key, info in TrainingSection.model_fields.items()}
_STAGE = tuple(_DEFAULTS)
_LENGTHS = ("epochs", "max_steps")
_FACTORS = {"continue": "kept", "retrain": "fresh"}
_SECTION_KINDS: dict[str, tuple[type[Section], ...]] = {
    "scoring": (ScoringSetOptions, RunningOptions, ScoringSet),
    "calibration": (HessianOptions, InputVarianceOptions, CalibrationSet),
    "allocation": (RankOptions,),
    "pruning": (TripletOptions, TrainingBatchOptions, DeviationOptions, CurveOptions),
    "stage1": (TrainingSection, InitialRank),
    "stage2": (TrainingSection, PlanScale),
}
_MORE_KEYS = {
    "scoring": ("batch_size",),
    "pruning": ("ending",),
    "stage1": ("orthogonality", "pruning", "train_on_path", "stop_when_stable"),
    "stage2": ("skip",),
}
_SECTION_NOW = {
    **{"scoring": "measure", "calibration": "measure", "allocation": "ranks", "pruning": "measure, smooth or cut"},
    **{"stage1": "search", "stage2": "train"},
}
# Key of format 1 -> section and key of format 2, where the name changed.
_SCORING = {"batch_size": "scoring_batch_size"}
_STAGE1 = {"pruning": "curve"}


def is_format_1(content: Mapping[str, Any]) -> bool:
    """Whether a recipe has keys that only format 1 has."""
    given = content.get("format")
    return given == 1 or (given is None and any(key in content for key in (*SECTIONS, *KEYS)))


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of format 1 in the keys of format 2. What a run does stays the same.

    `stage1` becomes `search` where its adapter is thrown away, and `train` where it is served; what is for baselines goes to
    `baselines`. Sections that the recipe's methods do not look at are left out.

    Raises:
        RecipeError: keys of both formats, or a section that is none.

    """
    _refuse_both_formats(content)
    if problems := _unknown_keys(content):
        raise RecipeError("\n".join(problems))
    method = METHODS.get(str(content.get("method", "i-lora")))
    if method is None:
        raise RecipeError(f"method: {unknown_method(str(content.get('method')))}")
    preset = content.get("preset") or method.earlier_default
    made: dict[str, Any] = {"preset": preset} if preset is not None else {}
    for key, value in content.items():
        if key == "model":
            own = {
                "dropout": content.get("model_dropout"),
                "trust_remote_code": content.get("trust_remote_code") or None,
            }
            own = {name: each for name, each in own.items() if each is not None}
            made["model"] = {"name": value, **own, "dtype": "fp32"}  # as format 1 loaded all models
        elif key == "targets":
            made["target_modules"] = value
        elif key == "baselines":
            made["baselines"] = value
        elif key not in (*SECTIONS, *KEYS, "format", "preset"):
            made[key] = value
    made |= _choices(content, method, preset, of_recipe=True)
    baselines, names = {}, content.get("baselines")
    for name in names if isinstance(names, list | tuple) and all(isinstance(one, str) for one in names) else ():
        baselines[name] = _of_baseline(content, method, made, METHODS[name]) if name in METHODS else {}
    if any(baselines.values()):
        made["baselines"] = baselines
    return made


def _refuse_both_formats(content: Mapping[str, Any]) -> None:
    new = [key for key in ("search", "train", *CHOICES, "expert", *KEYS.values()) if key in content]
    old = [key for key in (*SECTIONS, *KEYS) if key in content]
    if not new:
        return
    if not old:
        raise RecipeError(f"format is 1, which has no key {new[0]}; leave format out")
    if len(old) > len(new):
        raise RecipeError(
            f"{new[0]} is of recipe format 2, this recipe is of format 1; convert it first (lorank recipe upgrade FILE), or use "
            "its own words"
        )
    lines = []
    for name in old:
        section = content[name]
        keys = [f"{name}.{key}" for key in section] if name in SECTIONS and isinstance(section, Mapping) else []
        lines += [f"{key} is of recipe format 1; it is {_new_name(key)} now" for key in keys or [name]]
    raise RecipeError("\n".join(lines))


def _new_name(old: str) -> str:
    """What a key of format 1 is called now, whatever the method."""
    section, _, key = old.partition(".")
    if section not in SECTIONS:
        return KEYS[section]
    if not key:
        return _SECTION_NOW[section]
    key = (
        {"ending": "factors", "skip": "factors", **_SCORING, **_STAGE1}.get(key, key)
        if section != "calibration"
        else key
    )
    if section == "allocation":
        return f"ranks.{key}"
    if section in ("stage1", "stage2") and key in _STAGE:
        return f"train.{key}" if section == "stage2" else f"search.{key} (train.{key} where its adapter is served)"
    for method in METHODS.values():
        for name, kind in section_kinds(method).items():
            if key in kind.model_fields:
                return written_key(name, key)
    return "not known"


def _unknown_keys(content: Mapping[str, Any]) -> list[str]:
    """A line for each key that no section of format 1 had."""
    problems = []
    for name, kinds in _SECTION_KINDS.items():
        section = content.get(name) or {}
        if not isinstance(section, Mapping):
            problems.append(f"{name}: give keys and values (got {section!r})")
            continue
        known = [*_MORE_KEYS.get(name, ()), *(key for kind in kinds for key in kind.model_fields)]
        problems += [
            f"{name}.{key}: unknown key{nearest(f'{name}.{key}', [f'{name}.{one}' for one in known])}"
            for key in section
            if key not in known
        ]
    return problems


def _choices(content: Mapping[str, Any], method: Method, preset: str | None, *, of_recipe: bool) -> dict[str, Any]:
    """Sections of a method, from those of format 1 that are about it."""
    scoring, pruning, calibration = (content.get(key) or {} for key in ("scoring", "pruning", "calibration"))
    stage1, stage2 = (content.get(key) or {} for key in ("stage1", "stage2"))
    values: dict[str, Any] = {"initial_rank": stage1.get("initial_rank"), "scale_by": stage2.get("scale_by")}
    if method.has_scoring_set:
        values |= {_SCORING.get(key, key): value for key, value in scoring.items()}
        values |= {_STAGE1.get(key, key): value for key, value in stage1.items() if key not in _STAGE}
        if "skip" in stage2:
            values["factors"] = "kept" if stage2["skip"] else "fresh"
    elif method.allocates_in_training and of_recipe:
        values |= {key: _FACTORS.get(str(value), value) if key == "ending" else value for key, value in pruning.items()}
        if "ending" in values:
            values["factors"] = values.pop("ending")
    elif method.scorer is not None:
        values |= calibration
    kinds, found = section_kinds(method), dict[str, dict[str, Any]]()
    home = {key: name for name, kind in kinds.items() for key in kind.model_fields if name != "ranks"}
    for key, value in values.items():
        if key in home and not (value is None and key in ("initial_rank", "scale_by")):
            section = home[key]
            at = found.setdefault("expert", {}).setdefault(section, {}) if key in EXPERT.get(section, ()) else None
            (found.setdefault(section, {}) if at is None else at)[key] = value
    if of_recipe and content.get("allocation"):
        found["ranks"] = dict(content["allocation"])
        if method.looks_at == "nothing":  # equal ranks, whatever they said
            found["ranks"] = {key: value for key, value in found["ranks"].items() if key not in ("rank_by", "scope")}
    start: Any = choices_in(method.presets[preset_of(method, preset)]).get("start")
    factors = found.get("start", {}).get("factors", getattr(start, "factors", None))
    first, second = ({key: value for key, value in stage.items() if key in _STAGE} for stage in (stage1, stage2))
    if factors == "kept":
        found["train"] = first
    else:
        found["train"] = second
        if factors == "fresh":
            # What search leaves out is as in train, what stage1 left out was a default.
            found["search"] = _differing({**_DEFAULTS, **first}, {**_DEFAULTS, **second})
            if preset_of(method, preset) in method.search_share:  # which would be shorter than stage1 was
                lengths = {"epochs": _DEFAULTS["epochs"], **{key: first[key] for key in _LENGTHS if key in first}}
                found["search"] = {**lengths, **found["search"]}
    order = (*CHOICES, "expert", "search", "train")
    return {key: found[key] for key in order if found.get(key)}


def _of_baseline(
    content: Mapping[str, Any], first: Method, made: Mapping[str, Any], baseline: Method
) -> dict[str, Any]:
    """Sections of a baseline's own: what it would not take over from the recipe."""
    preset = preset_of(baseline, baseline.earlier_default)
    own = _choices(content, baseline, preset, of_recipe=False)
    given: dict[str, Any] = {} if preset == baseline.default_preset else {"preset": preset}
    given |= {name: dict(section) for name, section in own.items() if name not in ("train", "search")}
    given.get("triplets", {}).pop("initial_rank", None)
    given.get("start", {}).pop("scale_by", None)
    if looks_at_calibration_set(first):
        for key in ("examples", "batch_size"):
            given.get("measure", {}).pop(key, None)
    if baseline.has_scoring_set:  # ranked as the recipe's method is
        of_first = first.presets[preset_of(first, content.get("preset") or first.earlier_default)]
        asked = {**of_first.ranks.model_dump(), **(content.get("allocation") or {})}
        own_ranks = baseline.presets[preset].ranks.model_dump()
        given["ranks"] = {key: asked[key] for key in ("rank_by", "scope") if asked[key] != own_ranks[key]}
    stages, shared = {}, made.get("train") or {}
    if baseline.allocates_in_training and "search" not in own and "learning_rate" in made.get("search", {}):
        shared = {**shared, "learning_rate": made["search"]["learning_rate"]}
    wanted = {**_DEFAULTS, **own.get("train", {})}
    stages["train"] = _differing(wanted, {**_DEFAULTS, **shared})
    if "search" in own:
        searched = {**wanted, **own["search"]}
        stages["search"] = _differing(searched, {**wanted, **made.get("search", {})})
    return {key: value for key, value in merged(given, stages).items() if value}


def _differing(wanted: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if value != shared[key]}
