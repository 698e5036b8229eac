"""Write docs/recipe.md from the code's own declarations: `python docs/write_recipe_page.py`. A test keeps the page current."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import recipe_page_text as text
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorank.budget import Budget
from lorank.methods import METHODS, Method
from lorank.methods.choose import choices_in
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import (
    CHOICES,
    EXPERT,
    InitialRank,
    ModelSection,
    PlanScale,
    SearchSection,
    TrainingSection,
    section_kinds,
)
from lorank.tasks.section import DataSection

TABLE = ("| key | default | meaning |", "|---|---|---|")
# Heading and a line below it -> methods of that kind.
KINDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("Scored on a scoring set", ""): ("i-lora",),
    (
        "Scored on the batches that are trained on",
        "With `cut.budget_in: ranks` `ranks.max_rank`, `ranks.multiple_of`, `ranks.scope` and `ranks.within` are refused.",
    ): ("igu-lora", "adalora"),
    (
        "Scored before training, on the frozen model",
        "`magnitude` and `lora` have no `measure`; their other keys are the same.",
    ): ("sensitivity-lora", "gradient", "eva", "magnitude", "lora"),
}


def key_rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    """One table row for each key of a section, and of the sections in it."""
    rows = []
    for name, info in section.model_fields.items():
        rows.append(f"| `{prefix}{name}` | {shown(info.default)} | {meaning(info)} |")
        for inner in (kind for kind in get_args(info.annotation) if _is_section(kind)):
            rows += key_rows(inner, f"{prefix}{name}.")
    return rows


def common_rows() -> list[str]:
    """Keys of every recipe that are in no section."""
    sections = {"model": "hub name or folder of the base model, or the section below", "data": "the section below"}
    rows = []
    for name, info in Recipe.model_fields.items():
        if name in sections:
            rows.append(f"| `{name}` | (needed) | {sections[name]} |")
        elif name not in (*CHOICES, "search", "train", "resolved"):
            told = f": {' or '.join(f'`{method}`' for method in METHODS)}" if name == "method" else ""
            rows.append(f"| `{name}` | {shown(info.default)} | {meaning(info)}{told} |")
    return rows


def keys_of(method: Method, preset: str, *, expert: bool = False) -> dict[str, tuple[Any, str]]:
    """Key -> value in a preset and meaning, for all keys of the method's choices; those for experts, or the others."""
    values, found = choices_in(method.presets[preset]), dict[str, tuple[Any, str]]()
    kinds = section_kinds(method)
    for section in (name for name in CHOICES if name in kinds):
        fields = kinds[section].model_fields
        for name in sorted(fields, key=lambda name: name not in InitialRank.model_fields):
            info = fields[name]
            if (name in EXPERT.get(section, ())) != expert:
                continue
            # The number of rows in a scoring batch is of the recipe: the preset leaves it to the training.
            value = getattr(values.get(section), name, None)
            key = f"expert.{section}.{name}" if expert else f"{section}.{name}"
            found[key] = info.default if value is None else value, meaning(info)
            for inner in (kind for kind in get_args(info.annotation) if _is_section(kind)):
                for part, more in inner.model_fields.items():
                    found[f"{key}.{part}"] = more.default, meaning(more)
    return found


def choice_table(names: Sequence[str]) -> list[str]:
    """Keys of methods of one kind, with a column for each that has a choice besides rank limits."""
    held = {name: keys_of(METHODS[name], METHODS[name].default_preset) for name in names}
    columns = [name for name in names if "measure" in choices_in(METHODS[name].default)]
    lines = [f"| key | {' | '.join(f'`{name}`' for name in columns)} | meaning |", "|---" * (len(columns) + 2) + "|"]
    for key in sorted({key for keys in held.values() for key in keys}, key=_place(held.values())):
        told = next(keys[key][1] for keys in held.values() if key in keys)
        values = [shown(held[name][key][0]) if key in held[name] else "-" for name in columns]
        lines.append(f"| `{key}` | {' | '.join(values)} | {told} |")
    return lines


def preset_table(method: Method) -> list[str]:
    """The keys in which the presets of a method differ."""
    held = {preset: keys_of(method, preset) for preset in method.presets}
    names = [f"`{name}`{' (default)' if name == method.default_preset else ''}" for name in held]
    lines = ["", f"| presets of `{method.name}` | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key in next(iter(held.values())):
        values = [shown(keys[key][0]) for keys in held.values()]
        if len(set(values)) > 1:
            lines.append(f"| `{key}` | {' | '.join(values)} |")
    return lines


def expert_table() -> list[str]:
    """Keys for experts, with the methods that have them."""
    held = {name: keys_of(method, method.default_preset, expert=True) for name, method in METHODS.items()}
    lines = ["| key | methods | default | meaning |", "|---|---|---|---|"]
    for key in sorted({key for keys in held.values() for key in keys}, key=_place(held.values())):
        names = [name for name, keys in held.items() if key in keys]
        value, told = held[names[0]][key]
        lines.append(f"| `{key}` | {', '.join(names)} | {shown(value)} | {told} |")
    return lines


def section_table() -> list[str]:
    """The six choices, and the methods that have a section for each."""
    lines = []
    for section in CHOICES:
        names = [name for name, method in METHODS.items() if section in section_kinds(method)]
        told = "all" if len(names) == len(METHODS) else ", ".join(names)
        if section in ("triplets", "start"):
            (only,) = InitialRank.model_fields if section == "triplets" else PlanScale.model_fields
            told += f"; methods that decide before training have only `{only}`"
        lines.append(f"| `{section}` | {text.MEANINGS[section]} | {told} |")
    return lines


def budget_rows() -> list[str]:
    """The forms of a budget, from the table of `lorank.Budget`."""
    table = [line.strip() for line in (Budget.__doc__ or "").splitlines() if line.strip().startswith("|")]
    forms = (line.strip("|").split("|", 1) for line in table[2:])
    return [f"| {form.strip().replace(chr(34), '')} | {told.strip()} |" for form, told in forms]


def format_1_rows() -> list[str]:
    """Old and new names of keys; those that only moved by section, from the sections that there are."""
    measured, pruned = section_kinds(METHODS["i-lora"]), section_kinds(METHODS["igu-lora"])
    looked = section_kinds(METHODS["sensitivity-lora"])
    rows = [
        ("`model`, `model_dropout`, `trust_remote_code`", "`model`, `model.dropout`, `model.trust_remote_code`"),
        ("`targets`", "`target_modules`"),
        ("`stage1.initial_rank`", "`triplets.initial_rank`"),
        (
            f"`stage1.` {_names(TrainingSection)}",
            "`search.*` where a method starts fresh (i-lora), `train.*` where it keeps its triplets (igu-lora, adalora)",
        ),
        ("`stage2.` the same", "`train.*`"),
        ("`stage1.orthogonality`, `stage1.train_on_path`", "`triplets.orthogonality`, `triplets.train_on_path`"),
        ("`stage1.pruning`", "`cut.curve`"),
        ("`stage1.stop_when_stable`", "`cut.stop_when_stable`"),
        ("`stage2.skip: true`", "`start.factors: kept`"),
        ("`stage2.scale_by`", "`start.scale_by`"),
        ("`scoring.batch_size`", "`measure.scoring_batch_size`"),
    ]
    rows += _moved("scoring", measured, ("measure", "smooth"), ("scoring_batch_size",))
    rows.append(("`pruning.ending`: `continue`, `retrain`", "`start.factors`: `kept`, `fresh`"))
    rows += _moved("pruning", pruned, ("triplets", "measure", "smooth", "cut"), ("initial_rank", "orthogonality_added"))
    rows += _moved("calibration", looked, ("measure",), ())
    rows += [("`calibration.components`", "`expert.measure.components`"), ("`allocation.*`", "`ranks.*`")]
    rows += [
        ("sections of a method that is only in `baselines`", "`baselines.NAME.*`"),
        ("`--output-dir`", "`--output`, in every command"),
    ]
    return [f"| {old} | {new} |" for old, new in rows]


def _moved(
    old: str, kinds: Mapping[str, type[BaseModel]], sections: Sequence[str], renamed: Sequence[str]
) -> list[tuple[str, str]]:
    rows = []
    for section in sections:
        names = [name for name in kinds[section].model_fields if name not in renamed]
        for prefix, own in (("", False), ("expert.", True)):
            moved = [name for name in names if (name in EXPERT.get(section, ())) == own]
            if moved:
                rows.append((f"`{old}.` {', '.join(moved)}", f"`{prefix}{section}.*`"))
    return rows


def _names(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _place(held: Iterable[Mapping[str, Any]]) -> Any:
    """A sort key: sections in the order of the choices, keys of a section in the order of the methods."""
    order = list(dict.fromkeys(key for keys in held for key in keys))
    return lambda key: (CHOICES.index(key.removeprefix("expert.").partition(".")[0]), order.index(key))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def shown(default: Any) -> str:
    """How YAML would say it."""
    if default is PydanticUndefined:
        return "(needed)"
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def meaning(info: FieldInfo) -> str:
    """The description, and for a choice what there is to choose from."""
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    parts = [info.description or "", " or ".join(f"`{choice}`" for choice in choices) if len(choices) > 1 else ""]
    return ": ".join(part for part in parts if part).replace("|", "\\|")


def page() -> str:
    """The whole page.

    Raises:
        RecipeError: an example recipe of the page cannot be read.

    """
    for example in (text.I_LORA, text.IGU_LORA, text.SENSITIVITY_LORA):
        make_recipe(yaml.safe_load(example))
    most_set = [f"| {key} | {told} |" for key, told in text.MOST_SET.items()]
    lines = [
        text.HEAD + "\n".join(most_set),
        text.SECTIONS + "\n".join(section_table()),
        text.STAGES + "\n".join(budget_rows()),
        text.AFTER_BUDGETS,
    ]
    lines += [*TABLE, *common_rows(), "", "### `model`", "", "A name alone, or this section.", "", *TABLE]
    lines += [
        *key_rows(ModelSection, "model."),
        *text.MODEL_NOTES.rstrip().splitlines(),
        "",
        "### `data`",
        "",
        *TABLE,
        *key_rows(DataSection, "data."),
    ]
    lines += [text.STAGE_KEYS, *TABLE, *key_rows(SearchSection), text.CHOICE_KEYS]
    for (title, note), names in KINDS.items():
        lines += [f"### {title}: {', '.join(names)}", "", *([note, ""] if note else []), *choice_table(names)]
        lines += [line for name in names if len(METHODS[name].presets) > 1 for line in preset_table(METHODS[name])]
        lines.append("")
    lines[-1:] = [text.EXPERT_KEYS, *expert_table(), text.FORMAT_1 + "\n".join(format_1_rows()), text.AFTER_FORMAT_1]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(page(), encoding="utf-8")
