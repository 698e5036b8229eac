"""Keys of a recipe itself that are unknown, each with the key that was probably meant."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from lorank.methods import METHODS, Method
from lorank.recipe.sections import SearchSection, TrainingSection, section_kinds, written_key
from lorank.tasks.section import DataSection
from lorank.validation import nearest

# Where one of these is misspelt, what else is wrong depends on it.
_DECIDING = ("model", "method", "preset", "budget", "data")


def choice_keys(method: Method | None) -> list[str]:
    """The options of a method as a recipe writes them: `cut.begin`, `expert.smooth.epsilon`."""
    kinds = {} if method is None else section_kinds(method)
    return [written_key(section, key) for section, kind in kinds.items() for key in kind.model_fields]


def without_unknown(content: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of a recipe that are known, and what is said of the others.

    Where an unknown key was probably meant as another one, which decides how the rest is read and is not there, its value is
    taken for that one's: so the rest can be looked at too, and `methd: eva` does not make all of its sections wrong.
    """
    keys = [*known, "expert"]
    inner = [f"train.{key}" for key in TrainingSection.model_fields]
    inner += [f"data.{key}" for key in DataSection.model_fields]
    inner += choice_keys(METHODS.get(str(content.get("method", "i-lora"))))
    inner += [f"search.{key}" for key in SearchSection.model_fields]
    found, problems = {key: value for key, value in content.items() if key in keys}, list[str]()
    for key, value in content.items():
        if key not in keys:
            problems.append(f"{key}: unknown key{nearest(key, keys) or nearest(key, inner)}")
            like = get_close_matches(key, keys, 1, 0.6)
            if like and (like[0] in _DECIDING or isinstance(value, Mapping)):
                found.setdefault(like[0], value)
    return found, problems
