"""Methods from outside: entry points of packages, and files."""

import warnings
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lorank.cli import app
from lorank.errors import LorankWarning, RecipeError
from lorank.methods import METHODS, plugins
from lorank.methods.plugins import load_entry_points, load_plugin, loaded_plugins, plugin_of
from lorank.recipe.files import make_recipe

METHOD = """\
import lorank
from lorank.engine.options import RankOptions
from lorank.methods import FrozenModelChoices

lorank.register(lorank.Method("{name}", "ours", {{"paper": FrozenModelChoices(ranks=RankOptions())}}, "paper"))
"""


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_file_registers_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, METHOD.format(name="mine"))
    assert (loaded_plugins(), plugin_of("mine")) == ({}, None)
    load_plugin(file)
    first = METHODS["mine"]
    monkeypatch.chdir(tmp_path)
    load_plugin("mine.py")  # the same file, by another name for it
    assert METHODS["mine"] is first
    assert loaded_plugins() == {str(file): sha256(file.read_bytes()).hexdigest()}
    found = plugin_of("mine")
    assert found is not None
    assert found.path == str(file)
    assert plugin_of("lora") is None
    assert make_recipe({"model": "x", "budget": "r=1", "method": "mine", "data": {"name": "y"}}).method == "mine"


def test_options_of_a_file_may_be_described_by_types_of_that_file(tmp_path: Path) -> None:
    head = "from __future__ import annotations\nfrom typing import Literal\n"
    head += "from lorank.scoring.options import CalibrationOptions\n"
    body = 'Side = Literal["left", "right"]\n\n\nclass Mine(CalibrationOptions):\n    side: Side = "left"\n\n\n'
    body += 'Mine(side="right")\n'
    load_plugin(written(tmp_path, head + body + METHOD.format(name="mine")))
    assert "mine" in METHODS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import lorank\n", r"mine\.py: registers no method; call lorank\.register"),
        ("x = 1\n\nraise ValueError('too small')\n", r"mine\.py, line 3: ValueError: too small"),
        ("def f(:\n", r"mine\.py, line 1: SyntaxError: "),
        ("x = 1\nimport nothing_of_that_name\n", r"mine\.py, line 2: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", r"mine\.py, line 1: SystemExit: 3"),
        ("x = '\0'\n", r"mine\.py.*: .*null bytes"),
        (METHOD.format(name="eva"), r"mine\.py, line 5: a method 'eva' is registered already"),
        (METHOD.format(name="mine") + "1 / 0\n", r"mine\.py, line 6: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    before = dict(METHODS)
    with pytest.raises(RecipeError, match=said):
        load_plugin(written(tmp_path, text))
    assert before == METHODS
    assert loaded_plugins() == {}


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file; give a Python file"):
        load_plugin(tmp_path / "nothing.py")
    with pytest.raises(RecipeError, match="is a folder; give a Python file"):
        load_plugin(tmp_path)
    with pytest.raises(RecipeError, match=r"is no Python file \(\.py\)"):
        load_plugin(written(tmp_path, "method: mine\n", "mine.yaml"))


def test_a_file_that_changed_and_another_of_its_name_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a", METHOD.format(name="mine"))
    load_plugin(file)
    with pytest.raises(RecipeError, match="another plugin of that name is loaded"):
        load_plugin(written(tmp_path / "b", METHOD.format(name="other")))
    file.write_text(METHOD.format(name="mine") + "# more\n")
    with pytest.raises(RecipeError, match="changed since it was loaded; start lorank again"):
        load_plugin(file)


class Distribution:
    name = "lorank-mine"


def entries(*found: tuple[str, str]) -> Any:
    def entry_points(group: str) -> Sequence[Any]:
        made = [EntryPoint(name, value, group) for name, value in found]
        for one in made:
            vars(one)["dist"] = Distribution
        return made

    return entry_points


def test_entry_points_register_and_a_broken_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, METHOD.format(name="mine").replace("lorank.register(", "MINE = (", 1), "lorank_mine_entry.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = entries(("odd", "lorank_nothing:ODD"), ("text", "lorank:__doc__"), ("mine", "lorank_mine_entry:MINE"))
    monkeypatch.setattr(plugins, "entry_points", found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_entry_points()
    assert METHODS["mine"].reference == "ours"
    odd, text = (str(one.message) for one in caught if issubclass(one.category, LorankWarning))
    assert "entry point odd = lorank_nothing:ODD (lorank.methods) of lorank-mine gives no method: ModuleNotFound" in odd
    assert "register got str; give a lorank.Method; mend or remove lorank-mine" in text
    assert plugin_of("mine") is None


def test_an_unknown_method_says_how_a_file_is_given(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"method: method 'mine' is unknown.*; give --plugin FILE, if it is in a file"
    ):
        make_recipe({"model": "x", "budget": "r=1", "method": "mine", "data": {"name": "y"}})


def test_commands_name_the_methods_of_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, METHOD.format(name="mine").replace('"paper")', '"paper", scorer="x:y")'))
    for arguments in (["methods", "--plugin", str(file)], ["score", "--plugin", str(file), "--help"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "mine" in result.output
        assert "sensitivity-lora" in result.output
    result = CliRunner().invoke(app, ["methods"])
    assert "recommended, paper, official" in result.output  # the default first
    broken = CliRunner().invoke(app, ["methods", "--plugin", str(tmp_path / "no.py")])
    assert broken.exit_code == 1
    assert "no such file" in broken.output
