"""Write docs/recipe.md from the recipe's own fields: `python docs/write_recipe_page.py`. A test keeps the page current."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorank.training.recipe import Recipe

HEAD = """# Recipes

A recipe is a YAML file; any key can be overridden on the command line (`stage2.epochs=1`, values are YAML). Unknown keys
are refused with the nearest valid one. Paths are relative to the folder in which `lorank` runs. The preset of the method
fills in what the recipe leaves out. The resolved recipe, with versions, seed and hashes of the data, is written into the
output directory, and can be run again.

This page is written from the code by `python docs/write_recipe_page.py`.

| key | default | meaning |
|---|---|---|
"""


def rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    """One table row for each key, sections' keys after the section."""
    found = []
    for name, info in section.model_fields.items():
        inner = [
            k for k in (info.annotation, *get_args(info.annotation)) if isinstance(k, type) and issubclass(k, BaseModel)
        ]
        if name == "resolved":
            continue
        if not inner or info.default is None:
            found.append(f"| `{prefix}{name}` | {shown(info.default)} | {meaning(info)} |")
        for kind in inner:
            found += rows(kind, f"{prefix}{name}.")
    return found


def shown(default: Any) -> str:
    """How YAML would say it."""
    if default is PydanticUndefined:
        return "(needed)"
    return f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default}`"


def meaning(info: FieldInfo) -> str:
    """The description, and for a choice what there is to choose from."""
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    parts = [info.description or "", " or ".join(f"`{choice}`" for choice in choices)]
    return ": ".join(part for part in parts if part).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows(Recipe)) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(page(), encoding="utf-8")
