"""Recipes, overrides, keys and commands that the pages show are read by the code that they are about."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from lorank.cli import app
from lorank.compare.cells import CONTROLS, Cell, recipe_of
from lorank.compare.sweep.variants import read_values
from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.recipe.files import make_recipe, read_override, read_recipe
from lorank.recipe.format1 import KEYS, SECTIONS, is_format_1, upgraded
from lorank.recipe.method_sections import merged
from lorank.recipe.sections import CHOICES, EXPERT, SearchSection, section_kinds
from lorank.recipe.shipped import shipped_recipes
from lorank.tasks.section import DataSection

# docs/add-a-method.md is about a method that is not known here.
PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md")), Path("src/lorank/recipes/README.md")]
PAGES = [page for page in PAGES if page.name != "add-a-method.md"]
WITH_OVERRIDES = ("run", "headroom", "suggest", "score", "train", "compare", "sweep", "prune")
MINIMAL = {"model": "m", "budget": "r=2", "data": {"train": "a.csv", "test": "b.csv"}}
KEY = r"(?:expert\.)?(?:" + "|".join((*CHOICES, "search", "train", "data")) + r")(?:\.[a-z_]+)+"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def recipes_of(page: Path) -> list[dict[str, Any]]:
    return [content for block in blocks(page, "yaml") if "model" in (content := yaml.safe_load(block))]


def command_lines(page: Path) -> Iterator[list[str]]:
    """Words of each `lorank` command line in blocks of commands."""
    for line in (line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()):
        if match := re.match(r"(?:(?:torchrun|accelerate) .* -m )?lorank (.+)", line):
            yield shlex.split(match[1], comments=True)


def commands(page: Path) -> Iterator[list[str]]:
    """The same, and those in running text, which may have parts alone."""
    yield from command_lines(page)
    for code in re.findall(r"`lorank ([^`]+)`", page.read_text(encoding="utf-8")):
        yield shlex.split(code, comments=True)


RECIPES = [(page, content) for page in PAGES for content in recipes_of(page)]
LINES = [(page, words) for page in PAGES for words in command_lines(page)]
COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "content"), RECIPES, ids=lambda value: str(value) if isinstance(value, Path) else "")
def test_recipes_are_valid(page: Path, content: dict[str, Any]) -> None:
    assert not is_format_1(content)
    make_recipe(content)


def test_there_are_recipes_and_commands_to_test() -> None:
    assert len(RECIPES) > 5
    assert sum(any("=" in word for word in words[1:]) for _, words in COMMANDS) > 3


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: str(value)[:60])
def test_options_of_commands_exist(page: Path, words: list[str]) -> None:
    command: Any = get_command(app)
    known = {option for one in command.params for option in one.opts} | {"--help"}
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
        known = {option for one in command.params for option in one.opts} | {"--help"}
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= known, f"{page}: {sorted(asked - known)}"


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda value: str(value)[:60])
def test_command_lines_are_parsed(page: Path, words: list[str]) -> None:
    """Arguments that are needed are there, and values are of the type that an option has. Nothing is called."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    parsed = command.make_context(
        "lorank", list(words), resilient_parsing=words == ["--version"] or "--plugin" in words
    )
    assert parsed.params


@pytest.mark.parametrize(
    ("page", "words"),
    [(page, words) for page, words in COMMANDS if words[0] in WITH_OVERRIDES],
    ids=lambda value: str(value)[:60],
)
def test_overrides_of_commands_are_read(page: Path, words: list[str]) -> None:
    named = [Path(word) for word in words[1:] if word.endswith(".yaml")]
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("--") and " " not in word]
    overrides = [word for word in overrides if not re.fullmatch(r"(half,)?(r|rank|keep|beta)=.*", word)]  # budgets
    if "--over" in words:
        over = words[words.index("--over") + 1]
        overrides = [*(word for word in overrides if word != over), *(one.overrides[0] for one in read_values(over)[1])]
    files = [*named[:1], *(path for path in shipped_recipes().values() if named and path.name == named[0].name)]
    found = next((path for path in files if path.is_file()), None)
    content = read_recipe(found) if found else (recipes_of(page) or recipes_of(Path("docs/recipe.md")))[0]
    for override in overrides:
        prefix, colon, rest = override.partition(":")
        own = nested(rest if colon and "=" not in prefix else override)
        if colon and (prefix in METHODS or prefix in CONTROLS):
            recipe_of(content, Cell("task", "r=2", prefix, 0), own, 1000)
        else:
            content = merged(content, own)
    make_recipe(content)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_keys_in_the_text_are_keys_of_a_recipe(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = known_keys()
    codes = []
    for code in re.findall(r"`([^`\n]+)`", text):
        codes += code.split() if re.fullmatch(r"(\S+=\S+ ?)+", code) else [code]
    for code in codes:
        if match := re.fullmatch(rf"({KEY})(?:(?:=|: )(.+))?", code):
            key, value = match.groups()
            if key.endswith((".csv", ".json", ".png", ".tsv")):  # names of files
                continue
            assert key in known, f"{page}: `{code}`"
            if value and not value.startswith("{"):
                assert any(is_read(name, f"{key}={value}") for name in METHODS), f"{page}: `{code}`"
        elif "## Format 1" not in text:
            assert not re.fullmatch(rf"(?:{'|'.join(SECTIONS)})\.[a-z_]+(?:=.+|: .+)?", code), f"{page}: `{code}`"


def test_new_names_of_keys_are_those_that_the_upgrade_gives() -> None:
    table = Path("docs/recipe.md").read_text(encoding="utf-8").partition("## Format 1")[2]
    pairs = re.findall(r"^\| `([a-z_0-9]+\.[a-z_]+)` \| `([a-z_.]+)` \|$", table, re.M)
    assert len(pairs) > 4
    for old, new in pairs:
        section, _, key = old.partition(".")
        made = [upgraded({**MINIMAL, "method": name, section: {key: "value"}}) for name in METHODS]
        assert any(at(content, new) == "value" for content in made), old
    assert {f"`{key}`" for key in KEYS} <= set(re.findall("`[a-z_]+`", table))


def nested(override: str) -> dict[str, Any]:
    keys, value = read_override(override)
    for key in reversed(keys):
        value = {key: value}
    return value


def at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def known_keys() -> set[str]:
    """Every key of a recipe, of any method."""
    kinds: list[tuple[str, type[BaseModel]]] = [("data", DataSection)]
    kinds += [(stage, SearchSection) for stage in ("search", "train")]
    kinds += [(name, kind) for method in METHODS.values() for name, kind in section_kinds(method).items()]
    found = set()
    for section, kind in kinds:
        for key, info in kind.model_fields.items():
            whole = f"expert.{section}.{key}" if key in EXPERT.get(section, ()) else f"{section}.{key}"
            found.add(whole)
            inner = [
                part for part in get_args(info.annotation) if isinstance(part, type) and issubclass(part, BaseModel)
            ]
            found |= {f"{whole}.{key}" for part in inner for key in part.model_fields}
    return found


def is_read(method: str, override: str) -> bool:
    """Whether a recipe of this method may have that value."""
    try:
        make_recipe(merged({**MINIMAL, "model": {"name": "m"}, "method": method}, nested(override)))
    except RecipeError:
        return False
    return True
