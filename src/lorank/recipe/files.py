"""Recipes as YAML files, with `key=value` overrides."""

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from lorank.artefact import write_text
from lorank.errors import LorankWarning, OutputError, RecipeError
from lorank.recipe.format1 import KEYS, SECTIONS, is_format_1, upgraded
from lorank.recipe.method_sections import with_method
from lorank.recipe.recipe import Recipe
from lorank.recipe.yaml_text import LONGEST, yaml_content


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides (`train.epochs=1`; values are YAML).

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest valid one), a bad value.

    Warns:
        LorankWarning: a recipe of format 1, with the new names of its keys.

    """
    return make_recipe(read_recipe(path, overrides))


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The content of a YAML recipe with its overrides, in the keys of format 2: presets are not filled in, nothing is validated.

    Where an override names another method, the file's choices for its own method do not apply, as for a baseline.

    Raises:
        RecipeError: no such file, not YAML, or an override that cannot be read.

    Warns:
        LorankWarning: as `load_recipe`.

    """
    content, read = read_yaml(path), [read_override(override) for override in overrides]
    method = next((str(value) for keys, value in reversed(read) if keys == ["method"]), content.get("method", "i-lora"))
    if is_format_1(content) or any(keys[0] in SECTIONS for keys, _ in read):
        if method != content.get("method", "i-lora"):
            content.pop("preset", None)  # of another method
        return _of_format_1(path, content, read)
    content = with_method(content, method)
    for keys, value in read:
        _set(content, keys, value)
    return content


def _of_format_1(
    path: str | Path, content: dict[str, Any], overrides: Iterable[tuple[list[str], Any]]
) -> dict[str, Any]:
    for keys, value in overrides:
        _set(content, keys, value)
    new = upgraded(content)
    old_keys = [key for key in content if key in (*SECTIONS, *KEYS)]
    new_keys = [key for key in new if new[key] != content.get(key)]
    warnings.warn(
        f"{path}: recipe format 1; {', '.join(old_keys)} are now {', '.join(new_keys)}; to convert it: "
        f"lorank recipe upgrade {path}",
        LorankWarning,
        stacklevel=4,
    )
    return new


def upgrade_file(path: Path) -> Path:
    """Convert a recipe of format 1 where it stands; the comment at its top stays, the old file is kept beside it.

    Returns:
        Where the old file is.

    Raises:
        RecipeError: it is not of format 1, or no recipe.
        OutputError: there is an old file beside it already.

    """
    path = path.resolve()  # of a link, what it leads to
    content = read_yaml(path)
    if not is_format_1(content):
        raise RecipeError(f"{path}: has no key of recipe format 1; nothing is to be converted")
    if "resolved" in content:
        raise RecipeError(
            f"{path}: is the record of a run, which is read as it is; convert the recipe that it was run by"
        )
    new = {"format": 2, **upgraded(content)}
    make_recipe(new)
    kept = path.with_name(f"{path.stem}.format-1{path.suffix}")
    if kept.exists():
        raise OutputError(f"{kept} is there already; move it away first")
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path} cannot be written; change its permissions, or convert a copy")
    text = path.read_text(encoding="utf-8-sig").removeprefix("---\n")
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    body = yaml.safe_dump(new, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    shutil.copy2(path, kept)
    write_text(path, head + body)
    return kept


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file of keys and values.

    Raises:
        RecipeError: no such file, not UTF-8, not YAML, or something else than keys and values.

    """
    path = Path(path)
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; give a YAML file as the recipe, for example {path / 'recipe.yaml'}")
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe; give a YAML file, for example examples/quickstart.yaml")
    try:
        if path.stat().st_size > 4 * LONGEST:  # a character has four bytes at most
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        content = yaml_content(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8, at byte {error.start:,}; save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not YAML that can be a recipe: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {type(content).__name__}")
    return content


def read_override(override: str) -> tuple[list[str], Any]:
    """Keys and value of `train.epochs=1`.

    Raises:
        RecipeError: not of that form, or the value is not YAML.

    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {_short(override)} is not of the form key=value, for example train.epochs=1")
    try:
        return key.split("."), yaml_content(value)
    except ValueError as error:
        raise RecipeError(f"override {_short(override)}: the value is not YAML: {error}") from None


def make_recipe(content: Mapping[str, Any]) -> Recipe:
    """Validate a recipe, of format 2 or 1. The preset of its method fills in what the recipe leaves out.

    Raises:
        RecipeError: as `load_recipe`.

    """
    if all(isinstance(key, str) for key in content):
        return Recipe(**(upgraded(content) if is_format_1(content) else content))
    odd = next(key for key in content if not isinstance(key, str))
    raise RecipeError(f"{odd!r} is no key of a recipe; keys are words")


def _short(override: str) -> str:
    return repr(override if len(override) <= 100 else f"{override[:100]}...")


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if key == "model" and isinstance(inner, str):
            inner = content[key] = {"name": inner}
        elif key == "baselines" and isinstance(inner, list):
            inner = content[key] = dict.fromkeys(inner)
        elif not isinstance(inner, dict):
            inner = content[key] = {}
        content = inner
    content[keys[-1]] = value
