import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lorank.cli import app
from lorank.recipe.files import load_recipe
from lorank.recipe.shipped import FOLDER, shipped_recipes

COLA = "i-lora/deberta-v3-base-cola"


def lorank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_they_are_listed_with_what_they_are_about() -> None:
    listed = lorank("recipes")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in shipped_recipes())
    rows = json.loads(lorank("recipes", "--json", "-").stdout)["recipes"]
    assert [row["name"] for row in rows] == list(shipped_recipes())
    (cola,) = (row for row in rows if row["name"] == COLA)
    expected = {"method": "i-lora", "model": "microsoft/deberta-v3-base", "data": "nyu-mll/glue/cola"}
    assert cola == {"name": COLA, **expected, "budget": "keep=50%"}


def test_a_copy_is_the_recipe_and_replaces_nothing(tmp_path: Path) -> None:
    command = ("recipes", "copy", COLA, "i-lora/table3", "--folder", tmp_path / "new")
    assert lorank(*command).exit_code == 0
    copied = tmp_path / "new" / "deberta-v3-base-cola.yaml"
    assert copied.read_bytes() == shipped_recipes()[COLA].read_bytes()
    assert load_recipe(copied).method == "i-lora"
    assert lorank(*command).exit_code == 0  # the same again
    copied.write_text("mine")
    (tmp_path / "new" / "table3.yaml").unlink()
    refused = lorank(*command)
    assert refused.exit_code == 1
    assert "is there already" in refused.output
    assert copied.read_text() == "mine"
    assert not (tmp_path / "new" / "table3.yaml").exists()  # all of them, or none
    assert lorank(*command, "--overwrite").exit_code == 0
    assert load_recipe(copied).method == "i-lora"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["i-lora/deberta-v3-base-kola"], f"did you mean {COLA}?"),
        (["deberta-v3-base-cola"], f"did you mean adalora/deberta-v3-base-cola or {COLA}?"),
        (["nothing"], "`lorank recipes` lists them"),
        ([COLA, "adalora/deberta-v3-base-cola"], "two of these recipes have that file name"),
    ],
)
def test_names_that_cannot_be(names: list[str], message: str, tmp_path: Path) -> None:
    refused = lorank("recipes", "copy", *names, "--folder", tmp_path)
    assert refused.exit_code == 1
    assert message in " ".join(refused.output.split())
    assert not list(tmp_path.iterdir())


def test_the_wheel_takes_every_one() -> None:
    patterns = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lorank"]
    packed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert set(shipped_recipes().values()) <= packed
