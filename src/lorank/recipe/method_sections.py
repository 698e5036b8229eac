"""Which sections a recipe has for its method: its preset's values, what is under `expert`, what a baseline takes over."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.methods.choose import choices_in, preset_of
from lorank.recipe.sections import (
    BASELINE_KEYS,
    CHOICES,
    EXPERT,
    CalibrationSet,
    all_choices,
    looks_at_calibration_set,
    methods_with,
    section_kinds,
    written_key,
)
from lorank.validation import Section, explain, nearest

# Where every weight is trained, a learning rate that suits adapters is far too high.
_FULL_CHOICES: Mapping[str, Mapping[str, Any]] = {"train": {"learning_rate": 5e-5}}


def merged(content: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings put together; `over` wins."""
    both = dict(content)
    for key, value in over.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def filled_sections(method: Method, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keys of a recipe with the choices of its method as options: its preset's values, and over them its own.

    Returns:
        The keys, and what is wrong with the choices.

    Raises:
        RecipeError: the method has no such preset.

    """
    filled, problems = dict(content), list[str]()
    filled["preset"] = preset = preset_of(method, content.get("preset"))
    presets, kinds = choices_in(method.presets[preset]), section_kinds(method)
    own, made = _own_values(filled, problems), dict[str, dict[str, Any]]()
    for name in CHOICES:
        values = own.get(name)
        if name not in kinds:
            if values:
                problems.append(f"{name}: method {method.name} has no such choice; it has {', '.join(kinds)}")
            continue
        preset_values = {} if name not in presets else presets[name].model_dump(exclude_unset=True)
        known = {key: value for key, value in (values or {}).items() if key in kinds[name].model_fields}
        problems += [_unknown(method, name, str(key), kinds) for key in values or () if key not in known]
        made[name] = {**preset_values, **known}
    whole = all_choices(tuple(kinds.items()))
    try:
        filled |= dict(whole(**made))
    except ValidationError as error:
        problems.append(explain(error, whole))
    return filled, problems


def _unknown(method: Method, section: str, key: str, kinds: Mapping[str, type[Section]]) -> str:
    """What is said of an option that the method does not have in this section."""
    written = {written_key(name, one): one for name, kind in kinds.items() for one in kind.model_fields}
    said = f"{written_key(section, key)}: "
    if elsewhere := [path for path, one in written.items() if one == key]:
        return f"{said}unknown key (did you mean {elsewhere[0]}?)"
    if others := methods_with(section, key):
        return f"{said}method {method.name} has no such key, it is of {', '.join(others)}; leave it out"
    siblings = [path for path in written if path.startswith((f"{section}.", f"expert.{section}."))]
    return f"{said}unknown key{nearest(written_key(section, key), siblings) or nearest(key, written)}"


def _own_values(filled: dict[str, Any], problems: list[str]) -> dict[str, dict[str, Any]]:
    """Values of each choice that the recipe gives, those under `expert` among them; takes them out of `filled`."""
    own: dict[str, dict[str, Any]] = {}
    for name in CHOICES:
        section = filled.pop(name, None)
        if isinstance(section, BaseModel):
            own[name] = section.model_dump(exclude_unset=True)
        elif isinstance(section, Mapping):
            for key in section:
                if key in EXPERT.get(name, ()):
                    problems.append(f"{name}.{key}: is for experts; write it as expert.{name}.{key}")
            own[name] = {key: value for key, value in section.items() if key not in EXPERT.get(name, ())}
        elif section is not None:
            problems.append(f"{name}: give keys and values (got {section!r})")
    expert = filled.pop("expert", None) or {}
    if not isinstance(expert, Mapping):
        problems.append(f"expert: give sections of keys and values (got {expert!r})")
        return own
    for name, section in expert.items():
        if section is None:
            continue
        if name not in EXPERT or not isinstance(section, Mapping):
            problems.append(f"expert.{name}: unknown section{nearest(str(name), EXPERT)}; allowed: {', '.join(EXPERT)}")
            continue
        for key in section:
            if key not in EXPERT[name]:
                hint = nearest(f"expert.{name}.{key}", [f"expert.{name}.{one}" for one in EXPERT[name]])
                problems.append(
                    f"expert.{name}.{key}: is no option for experts; write it as {name}.{key}"
                    if methods_with(name, key)
                    else f"expert.{name}.{key}: unknown key{hint}"
                )
        own[name] = {**own.get(name, {}), **{key: value for key, value in section.items() if key in EXPERT[name]}}
    return own


def without_expert(content: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe as a file has them: options for experts in a section of their own."""
    expert = {}
    for name, keys in EXPERT.items():
        section = content.get(name)
        if isinstance(section, dict):
            if own := {key: section.pop(key) for key in sorted(keys & set(section))}:
                expert[name] = own
            if not section:
                del content[name]
    return {**content, "expert": expert} if expert else content


def inherited(content: Mapping[str, Any], method: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a baseline's recipe, see `Recipe.of`.

    Args:
        content: keys of the recipe, as a file has them.
        method: the baseline.
        own: keys that are the baseline's own.

    Raises:
        RecipeError: a key that would make the baseline unequal.

    """
    if strange := [key for key in own if key not in BASELINE_KEYS]:
        hint = nearest(str(strange[0]), BASELINE_KEYS)
        raise RecipeError(f"{strange[0]}: is for all methods alike{hint}; allowed: {', '.join(BASELINE_KEYS)}")
    beside = ("preset", "baselines", "resolved", "search", "expert", *CHOICES)
    kept = {key: value for key, value in content.items() if key not in beside and value is not None}
    kinds = section_kinds(METHODS[method])
    shared = {
        "triplets": ("initial_rank",),
        "start": ("scale_by",),
        "measure": tuple(CalibrationSet.model_fields) if looks_at_calibration_set(METHODS[method]) else (),
        # A method that is cut along a curve has the limits of its preset: counted in ranks, there are none.
        "ranks": ()
        if "cut" in kinds and not METHODS[method].has_scoring_set
        else ("max_rank", "min_rank", "multiple_of", "within"),
    }
    for name, keys in shared.items():
        section = content.get(name)
        if isinstance(section, Mapping) and (values := {key: section[key] for key in keys if key in section}):
            kept[name] = values
    search = content.get("search")
    if (
        isinstance(search, Mapping)
        and METHODS[method].allocates_in_training
        and isinstance(kept.get("train", {}), Mapping)
    ):
        if _keeps_triplets(METHODS[method], own):
            rate = {key: search[key] for key in ("learning_rate",) if key in search}
            kept["train"] = {**(kept.get("train") or {}), **rate}
        else:
            kept["search"] = search
    return merged({**kept, "method": method}, own)


def full_sections(own: Mapping[str, Any]) -> dict[str, Any]:
    """What full fine-tuning has of its own: how it trains, at 5e-5 where it does not say another learning rate.

    Args:
        own: its keys under `baselines`.

    Raises:
        RecipeError: a key other than `train`.

    """
    if strange := [key for key in own if key != "train"]:
        raise RecipeError(f"{strange[0]}: full fine-tuning trains every weight and has no ranks; allowed: train")
    return merged(_FULL_CHOICES, own)


def _keeps_triplets(method: Method, own: Mapping[str, Any]) -> bool:
    start: Any = choices_in(method.presets[preset_of(method, own.get("preset"))])["start"]
    given = own.get("start")
    return (given.get("factors", start.factors) if isinstance(given, Mapping) else start.factors) == "kept"


def with_method(content: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The keys of a recipe for another method: what all share, what it gives that one as a baseline, and its other baselines."""
    if method == content.get("method", "i-lora") or method not in METHODS:
        return dict(content)
    baselines = content.get("baselines") or {}
    own = baselines.get(method) if isinstance(baselines, Mapping) else None
    kept = inherited(content, method, own if isinstance(own, Mapping) else {})
    if not isinstance(baselines, Mapping | list | tuple):
        return {**kept, "baselines": baselines}
    if isinstance(baselines, Mapping):
        return {**kept, "baselines": {name: sections for name, sections in baselines.items() if name != method}}
    return {**kept, "baselines": [name for name in baselines if name != method]}
