"""The choices of a method: its preset's, and over them those of a user."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from lorank.engine.options import Choices, ScoringSetChoices, TrainingBatchChoices
from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.methods.method import Preset
from lorank.validation import Section, explain, nearest

AnyPreset = TypeVar("AnyPreset", bound=Preset)


class Chosen(NamedTuple):
    """A method that allocates while it trains, with its choices made."""

    method: str
    preset: str
    choices: Choices


def choose_options(method: str, preset: str | None, options: Mapping[str, Any]) -> Chosen:
    """Choices of allocation during training: the preset's, and over them those given.

    Args:
        method: that allocates while adapters train.
        preset: None is the method's default.
        options: of any of the method's choices, by name.

    Raises:
        RecipeError: a method that does not allocate while it trains, an unknown preset or option, a bad value.

    """
    known = [name for name, one in METHODS.items() if one.allocates_in_training]
    if method not in known:
        raise RecipeError(
            f"method {method!r} does not allocate while it trains{nearest(method, known)}; allowed: {', '.join(known)}"
        )
    chosen = preset_of(METHODS[method], preset)
    choices = with_options(METHODS[method].presets[chosen], options)
    assert isinstance(choices, TrainingBatchChoices | ScoringSetChoices)
    return Chosen(method, chosen, choices)


def with_options(preset: AnyPreset, options: Mapping[str, Any]) -> AnyPreset:
    """A preset with other values of its options, by name: no two of its choices have an option of the same name.

    Raises:
        RecipeError: an unknown option, or a bad value; all of them at once.

    """
    sections = choices_in(preset)
    home = {key: name for name, section in sections.items() for key in type(section).model_fields}
    for key in options:
        if key not in home:
            raise RecipeError(f"{key}: unknown option{nearest(key, home)}; allowed: {', '.join(home)}")
    made, problems = {}, []
    for name, section in sections.items():
        own = {key: value for key, value in options.items() if home[key] == name}
        try:
            made[name] = type(section)(**{**section.model_dump(exclude_unset=True), **own})
        except ValidationError as error:
            problems.append(explain(error, type(section)))
    if problems:
        raise RecipeError("\n".join(problems))
    try:
        return type(preset)(**made)
    except ValidationError as error:
        raise RecipeError(explain(error, type(preset)).removeprefix("recipe: ")) from None


def check_experts(method: str, measure: Section | None) -> None:
    """Refuse target_parameters for a method that gives no ranks to parameters of fused experts.

    Args:
        method: its name.
        measure: its options, or None.

    Raises:
        RecipeError: says which methods do.

    """
    known = [name for name, one in METHODS.items() if one.takes_experts]
    why = None
    if method not in known:
        trains = method in METHODS and METHODS[method].allocates_in_training
        why = f"method {method!r} {'cuts triplets of linear layers' if trains else 'looks at linear layers'} alone"
    elif (estimator := getattr(measure, "estimator", "fisher")) != "fisher":
        why = f"estimator {estimator!r} looks at what goes into linear layers, and there is none for an expert"
    if why is not None:
        words = [
            name if METHODS[name].default.measure is None else f"{name}{_ESTIMATOR.get(name, '')}" for name in known
        ]
        raise RecipeError(
            f"target_parameters: {why}; ranks of experts are decided before training, by {', '.join(words)}; or leave them out"
        )


_ESTIMATOR = {"sensitivity-lora": " (estimator: fisher)"}


def choices_in(preset: Preset) -> dict[str, Section]:
    """Name of each choice -> its options, for the choices that there are."""
    found = {name: getattr(preset, name) for name in type(preset).model_fields}
    return {name: section for name, section in found.items() if section is not None}


def preset_of(method: Method, preset: str | None) -> str:
    """The name of the preset, the method's default for None.

    Raises:
        RecipeError: the method has none of that name.

    """
    chosen = preset or method.default_preset
    if not isinstance(chosen, str) or chosen not in method.presets:
        hint = nearest(str(chosen), method.presets)
        raise RecipeError(f"preset {chosen!r} of {method.name} is unknown{hint}; allowed: {', '.join(method.presets)}")
    return chosen
