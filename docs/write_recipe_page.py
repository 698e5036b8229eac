"""Write docs/recipe.md from the recipe's own fields: `python docs/write_recipe_page.py`. A test keeps the page current."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorank.recipe.recipe import Recipe

HEAD = """# Recipes

A recipe is a YAML file; any key can be overridden on the command line (`stage2.epochs=1`, values are YAML). Unknown keys
are refused with the nearest valid one. Paths are relative to the folder in which `lorank` runs. The preset of the method
fills in what the recipe leaves out. The resolved recipe, with versions, seed and hashes of data and base model, is written
into the output directory, and can be run again.

Everything that can be checked is checked before weights are loaded, and all findings are reported at once. Where a recipe
leaves them out, `data.max_length` and `data.max_target_length` shrink to the positions of a short model, and
`scoring.batch_size`, `stage1.batch_size` and `calibration.examples` to small data, with a line that says so. A value that the
recipe gives is never changed: what does not fit is refused.

A run is not continued with other data or another base model. For a model from the hub its commit is compared; for a folder
the SHA-256 of its weights, config and tokenizer. Weights in files above 512 MiB are sampled: names, shapes, types, and the
first and last 4 KiB of each tensor. Training, merging or converting a model changes these; an edit of single entries in the
middle of a large tensor can go unnoticed.

This page is written from the code by `python docs/write_recipe_page.py`.

| key | default | meaning |
|---|---|---|
"""


def rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    """One table row for each key, sections' keys after the section."""
    lines = []
    for name, info in section.model_fields.items():
        inner = [
            k for k in (info.annotation, *get_args(info.annotation)) if isinstance(k, type) and issubclass(k, BaseModel)
        ]
        if name == "resolved":
            continue
        if not inner or info.default is None:
            lines.append(f"| `{prefix}{name}` | {shown(info.default)} | {meaning(info)} |")
        for kind in inner:
            lines += rows(kind, f"{prefix}{name}.")
    return lines


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
