"""`--data` of commands that take a recipe or a plain file of examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorank.recipe.recipe import Recipe
    from lorank.runs.data_file import DataFile


def read_data(path: Path | None, overrides: Sequence[str], **columns: Any) -> "Recipe | DataFile | None":
    """The recipe, or the data file, that `--data` names; None without one.

    Args:
        path: of either.
        overrides: of the recipe.
        **columns: options of a data file by name (`text`, `label`, `task`, `max_length`); None where one is not given.

    Raises:
        RecipeError: a recipe that cannot be read, or options that belong to the other kind of data.

    """
    from lorank.errors import RecipeError

    given = {name: value for name, value in columns.items() if value is not None}
    called = " and ".join(f"--{name.replace('_', '-')}" for name in given)
    verb = "are" if len(given) > 1 else "is"
    if path is not None and path.suffix.lower() in (".yaml", ".yml"):
        if given:
            raise RecipeError(f"{called} {verb} of a data file; the recipe says it itself ({_as_keys(given)})")
        from lorank.recipe.files import load_recipe

        return load_recipe(path, overrides)
    if overrides:
        raise RecipeError(f"{overrides[0]!r} changes a recipe, and --data gives none; leave it out")
    if path is None:
        if given:
            raise RecipeError(f"{called} {verb} of a data file; give one as --data")
        return None
    from lorank.runs.data_file import DataFile

    if "text" in given:
        given["text"] = tuple(given["text"].split(","))
    return DataFile(path, **given)


def _as_keys(given: Mapping[str, Any]) -> str:
    return ", ".join(f"data.{name}=..." for name in given)
