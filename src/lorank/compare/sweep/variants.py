"""A sweep: recipes with variants of their settings. A variant of a recipe is a task of a grid."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorank.compare.cells import BASELINE, Cell, budget_of, cells_of, fingerprint_of, recipe_of
from lorank.compare.compare import split_overrides
from lorank.compare.grid import Grid
from lorank.errors import ComparisonError, RecipeError
from lorank.findings import Findings
from lorank.recipe.files import make_recipe, read_override, read_recipe, read_yaml
from lorank.recipe.yaml_text import yaml_content


@dataclass(frozen=True)
class Variant:
    """Settings of a recipe under a name.

    Attributes:
        name: as tables show it; of a sweep over one key, the value.
        overrides: of the recipe, `key=value` each.
        folder: name of its cells' folder.

    """

    name: str
    overrides: tuple[str, ...]
    folder: str

    @property
    def sections(self) -> set[str]:
        """First parts of the keys that it sets."""
        return {read_override(one)[0][0] for one in self.overrides}


@dataclass(frozen=True)
class Sweep(Grid):
    """Variants of recipes.

    Attributes:
        recipes: names of the recipes, without a variant.
        variants: the first is the reference.
        key: what all variants give a value to; None where they are named, and each is run by its own method alone.

    """

    recipes: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    key: str | None = None

    def task(self, recipe: str, variant: Variant) -> str:
        """The grid's task of a recipe's variant."""
        return f"{recipe}/{variant.folder}"

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they run; each with the budget of its own recipe."""
        cells: list[Cell] = []
        for seed in self.seeds:
            for task, content in self.contents.items():
                cells += cells_of((task,), (budget_of(content),), self._methods_of(content), (seed,), against=None)
        return cells

    def _methods_of(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        return self.methods if self.key is not None else (_method_of(content),)


def read_variants(path: Path) -> tuple[Variant, ...]:
    """Named variants from a YAML file: name -> list of overrides of the recipe; the first is what the others are compared with.

    Raises:
        RecipeError: no such file, or not YAML.
        ComparisonError: not of that form, or fewer than two variants; all findings at once.

    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; give a YAML file with a list of overrides for each variant")
    findings, found = Findings(), list[Variant]()
    for name, overrides in read_yaml(path).items():
        with findings.check():
            found.append(_named_variant(path, name, overrides))
    with findings.check():
        if len(found) < 2 and not findings.errors:
            raise ComparisonError(f"{path} has {len(found)} variant; give the reference first, and one more at least")
    for variant in found:
        with findings.check():
            if alike := [one.name for one in found if one.folder == variant.folder and one is not variant]:
                raise ComparisonError(
                    f"{path}: variants {variant.name!r} and {alike[0]!r} would share a folder; rename one of them"
                )
    findings.raise_all()
    return tuple(found)


def read_values(over: str) -> tuple[str, tuple[Variant, ...]]:
    """A key and its variants, from `triplets.initial_rank=2,4,8`; values are YAML.

    Raises:
        ComparisonError: not of that form, or a value that is given twice.

    """
    key, equals, text = over.partition("=")
    try:
        values = yaml_content(f"[{text}]")
    except ValueError as error:
        raise ComparisonError(f"--over {over[:100]}: the values are not YAML: {error}") from None
    key = key.strip()
    parts = read_override(f"{key}=null")[0] if key else []
    if not equals or not parts or not all(parts) or len(values) < 2:
        raise ComparisonError(
            f"--over is {over!r}; allowed: a key and two values or more, for example triplets.initial_rank=2,4,8"
        )
    names = [_written(value) for value in values]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ComparisonError(f"--over {over}: {repeated[0]} is given twice; give each value once")
    if key == "method":
        raise ComparisonError("--over method: methods are compared by --methods; leave method to it")
    return key, tuple(
        Variant(name, (f"{key}={json.dumps(value)}",), _folder(f"{parts[-1]}={name}"))
        for name, value in zip(names, values, strict=True)
    )


def read_sweep(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    variants: Sequence[Variant],
    *,
    key: str | None,
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    folder: Path,
) -> Sweep:
    """A sweep from recipes, variants and the words of the command line.

    Args:
        recipes: a task each; its name is the file's.
        overrides: as in `read_grid`, below those of the variants.
        variants: of `read_variants` or `read_values`.
        key: of `read_values`; None for named variants.
        methods: of `METHODS` and `CONTROLS`, with a key only; None takes the recipes' own, and uniform LoRA where the values
            change its parameters or its training.
        seeds: of the runs.
        folder: where cells work.

    Raises:
        LorankError: a recipe, variant or method that cannot be read, or variants that are the same; all findings at once.

    """
    if key is None and methods is not None:
        raise ComparisonError(
            "--methods is for --over; a named variant is run by its own method: give method=NAME in it"
        )
    common, of_task, own = split_overrides(overrides, recipes)
    findings, contents = Findings(), dict[str, dict[str, Any]]()
    for variant in variants:
        with findings.check():
            if "seed" in variant.sections:
                raise ComparisonError(f"variant {variant.name}: seeds are those of --seeds; leave seed out")
    for path in recipes:
        given = [*common, *of_task[path.stem]]
        for variant in variants:
            with findings.check(), _of_variant(variant, path, given):
                content = read_recipe(path, [*given, *variant.overrides])
                make_recipe(content)
                contents[f"{path.stem}/{variant.folder}"] = content
    findings.raise_all()
    budgets = tuple(dict.fromkeys(map(budget_of, contents.values())))
    chosen = tuple(methods) if methods is not None else _usual_methods(contents, [path.stem for path in recipes], key)
    names = tuple(path.stem for path in recipes)
    sweep = Sweep(
        contents, budgets, chosen, tuple(seeds), own, folder, recipes=names, variants=tuple(variants), key=key
    )
    if strange := [name for name in own if name not in {cell.method for cell in sweep.cells()}]:
        raise ComparisonError(f"{strange[0]!r} has choices of its own, and is neither a method nor a recipe here")
    _check_distinct(sweep)
    return sweep


def _usual_methods(contents: dict[str, dict[str, Any]], recipes: Sequence[str], key: str | None) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(_method_of(content) for content in contents.values()))
    if key is None:
        return methods
    if len(methods) > 1:
        raise ComparisonError(f"the recipes have different methods ({', '.join(methods)}); give --methods")
    for recipe in recipes:
        mine = [content for task, content in contents.items() if task.startswith(f"{recipe}/")]
        if len({_settings(content, BASELINE, {}) for content in mine}) > 1:
            return tuple(dict.fromkeys((*methods, BASELINE)))
    return methods


def _check_distinct(sweep: Sweep) -> None:
    """Refuse variants that are the same recipe for every method: their difference would be 0, and look like a result."""
    findings = Findings()
    for recipe in sweep.recipes:
        seen: dict[tuple[str, ...], str] = {}
        for variant in sweep.variants:
            task = sweep.task(recipe, variant)
            cells = [cell for cell in sweep.cells() if cell.task == task and cell.seed == sweep.seeds[0]]
            made = tuple(
                f"{cell.method} {_settings(sweep.contents[task], cell.method, sweep.own_of(cell))}" for cell in cells
            )
            with findings.check():
                if made in seen:
                    raise ComparisonError(
                        f"variants {seen[made]!r} and {variant.name!r} are the same for {recipe}; leave one of them out"
                    )
            seen.setdefault(made, variant.name)
    findings.raise_all()


def _settings(content: Mapping[str, Any], method: str, own: Mapping[str, Any]) -> str:
    """What a method of a variant is asked for, as one sum."""
    cell = Cell("", budget_of(content), method, 0)
    return fingerprint_of(recipe_of(content, cell, own), cell)


@contextmanager
def _of_variant(variant: Variant, path: Path, given: list[str]) -> Iterator[None]:
    """Say which variant is wrong, unless the recipe itself is."""
    try:
        yield
    except RecipeError as error:
        try:
            make_recipe(read_recipe(path, given))
        except RecipeError as without:
            if str(without) == str(error):
                raise error from None
        lines = str(error).splitlines()
        raise RecipeError("\n".join(f"variant {variant.name}: {line}" for line in lines)) from None


def _named_variant(path: Path, name: Any, overrides: Any) -> Variant:
    overrides = [] if overrides is None else overrides
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise ComparisonError(
            f"{path}: variant {name!r} is {overrides!r}; allowed: a list of overrides, for example [train.epochs=5]"
        )
    for one in overrides:
        read_override(one)
    return Variant(str(name), tuple(overrides), _folder(str(name)))


def _folder(name: str) -> str:
    made = re.sub(r"[^\w=.,%+-]+", "-", name).strip("-.")
    if not made:
        raise ComparisonError(f"variant {name!r} has a name without a letter or a digit; rename it")
    return made


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _method_of(content: Mapping[str, Any]) -> str:
    return str(content.get("method", "i-lora"))
