"""The choices of a method: its preset's, and over them those of a user."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from lorank.engine.options import Choices, RankOptions, check_ranks
from lorank.errors import RecipeError
from lorank.methods import METHODS, Method
from lorank.validation import explain, nearest


class Chosen(NamedTuple):
    """A method with its choices made: `ranks` are the limits of the last cut, as `lorank.allocate` takes them."""

    method: str
    preset: str
    options: Choices
    ranks: dict[str, Any]


def choose_options(method: str, preset: str | None, options: Mapping[str, Any]) -> Chosen:
    """Options of allocation during training: the preset's, and over them those given.

    Args:
        method: that allocates while adapters train.
        preset: None is the method's default.
        options: of the method's choices and of `RankOptions`, by name.

    Raises:
        RecipeError: a method that does not allocate while it trains, an unknown preset or option, a bad value.

    """
    known = [name for name, one in METHODS.items() if one.choices is not None]
    if method not in known:
        raise RecipeError(
            f"method {method!r} does not allocate while it trains{nearest(method, known)}; allowed: {', '.join(known)}"
        )
    kind = METHODS[method].choices
    assert kind is not None
    chosen = preset_of(METHODS[method], preset)
    made = METHODS[method].presets[chosen]
    ranks = {key: value for key, value in options.items() if key in RankOptions.model_fields}
    own = {key: value for key, value in options.items() if key not in ranks}
    allowed = [*kind.model_fields, *RankOptions.model_fields]
    for key in own:
        if key not in allowed:
            raise RecipeError(f"{key}: unknown option{nearest(key, allowed)}; allowed: {', '.join(allowed)}")
    section: type[BaseModel] = kind
    try:
        choices = kind(**{**made.options, **own})
        section = RankOptions
        limits = RankOptions(**{**made.ranks, **ranks})
        check_ranks(choices, limits)
    except ValidationError as error:
        raise RecipeError(explain(error, section)) from None
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return Chosen(method, chosen, choices, limits.model_dump())


def preset_of(method: Method, preset: str | None) -> str:
    """The name of the preset, the method's default for None.

    Raises:
        RecipeError: the method has none of that name.

    """
    chosen = preset or method.default_preset
    if chosen not in method.presets:
        hint = nearest(str(chosen), method.presets)
        raise RecipeError(f"preset {chosen!r} of {method.name} is unknown{hint}; allowed: {', '.join(method.presets)}")
    return str(chosen)
