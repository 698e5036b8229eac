"""The recipes that are installed with lorank: the experiments of the papers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorank.artefact import check_unwritten, copy_file
from lorank.errors import RecipeError
from lorank.recipe.files import read_yaml
from lorank.validation import nearest

FOLDER = Path(__file__).parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file, sorted: `i-lora/deberta-v3-base-cola`. Variants for `lorank sweep` are among them."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}


def described() -> list[dict[str, Any]]:
    """For each recipe its name, method, model, data (`name/config`) and budget as strings; None for the settings of a sweep."""
    rows = []
    for name, path in shipped_recipes().items():
        content = read_yaml(path)
        if "model" not in content:  # variants of settings
            rows.append({"name": name, **dict.fromkeys(("method", "model", "data", "budget"))})
            continue
        data = "/".join(content["data"][key] for key in ("name", "config") if key in content["data"])
        chosen = {key: content[key] for key in ("method", "model", "budget")}
        rows.append({"name": name, **chosen, "data": data})
    return rows


def copy_recipes(names: Sequence[str], folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write recipes into a folder, by the last part of their names: all of them, or none.

    Args:
        names: of `shipped_recipes`.
        folder: where; made if it is not there.
        overwrite: replace files of that name that hold something else.

    Returns:
        The files, in the order of the names.

    Raises:
        RecipeError: no such recipe, with names that are near; or two that would be one file.
        OutputError: a file of that name holds something else.

    """
    known = shipped_recipes()
    sources = [_find(name, known) for name in names]
    written = [folder / source.name for source in sources]
    if twice := [path.name for path in dict.fromkeys(written) if written.count(path) > 1]:
        raise RecipeError(f"{', '.join(twice)}: two of these recipes have that file name; copy them into two folders")
    for source, path in zip(sources, written, strict=True):
        check_unwritten(path, same=path.is_file() and path.read_bytes() == source.read_bytes(), overwrite=overwrite)
    for source, path in zip(sources, written, strict=True):
        copy_file(source, path)
    return written


def _find(name: str, known: dict[str, Path]) -> Path:
    if name in known:
        return known[name]
    same_ending = [one for one in known if one.endswith(f"/{name}")]
    hint = f" (did you mean {' or '.join(same_ending)}?)" if same_ending else nearest(name, known)
    raise RecipeError(f"no recipe is called {name!r}{hint}; `lorank recipes` lists them")
