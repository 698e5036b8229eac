"""The recipe of `lorank score`: what it says of model, data and calibration, for a method that it need not name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.methods.registry import unknown_method
from lorank.recipe.files import load_recipe, make_recipe, read_override, read_yaml
from lorank.recipe.format1 import is_format_1
from lorank.recipe.method_sections import inherited, merged
from lorank.recipe.recipe import Recipe


def load_for_scoring(path: Path, overrides: Sequence[str], method: str | None) -> Recipe:
    """Read a recipe to score its model: its budget and its limits do not matter.

    Args:
        path: of the recipe.
        overrides: `key=value`; with a `method`, options of that method.
        method: None takes the recipe's. Another one has its preset and what the recipe gives it under `baselines`.

    Raises:
        RecipeError: as `load_recipe`, or an unknown method.

    """
    content = read_yaml(path)
    old = is_format_1(content)
    fixed = ["budget=r=1", "allocation={}" if old else "ranks={}"]
    if method is None or method == content.get("method"):
        return load_recipe(path, [*overrides, *fixed])
    if method not in METHODS:
        scorers = [name for name, one in METHODS.items() if one.scorer is not None]
        raise RecipeError(unknown_method(method, scorers))
    if old:
        return load_recipe(path, [*overrides, *fixed, f"method={method}", "preset=null", "pruning={}", "baselines=[]"])
    baselines = content.get("baselines") or {}
    own = baselines.get(method) or {} if isinstance(baselines, Mapping) else {}
    made = inherited(content, method, own)
    if isinstance(made.get("model"), str):
        made["model"] = {"name": made["model"]}
    for override in (*overrides, *fixed):
        keys, value = read_override(override)
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        made = merged(made, nested)
    return make_recipe(made)
