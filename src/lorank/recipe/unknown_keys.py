"""Keys of a recipe itself that are unknown, each with the key that was probably meant."""

from collections.abc import Iterable, Mapping
from typing import Any

from lorank.recipe.sections import SearchSection, TrainingSection
from lorank.tasks.section import DataSection
from lorank.validation import meant_by, nearest


def without_unknown(content: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The keys of a recipe that are known, and what is said of the others.

    Where an unknown key was probably meant as another one, which is not there, its value is taken for that one's: so the rest can
    be looked at too, and `methd: eva` does not make all of its sections wrong.
    """
    keys = [*known, "expert"]
    inner = [f"train.{key}" for key in TrainingSection.model_fields]
    inner += [f"search.{key}" for key in SearchSection.model_fields]
    inner += [f"data.{key}" for key in DataSection.model_fields]
    found, problems = {key: value for key, value in content.items() if key in keys}, list[str]()
    for key, value in content.items():
        if key not in keys:
            problems.append(f"{key}: unknown key{nearest(key, keys) or nearest(key, inner)}")
            if (meant := meant_by(key, keys)) is not None and meant != "scale":
                found.setdefault(meant, value)
    return found, problems
