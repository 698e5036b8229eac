"""Blocks of Python and of commands in the pages name what there is. `test_python_in_pages.py` runs the Python."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import PAGES, Block, blocks

import lorank

PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
COMMANDS = [block for page in PAGES for block in blocks(page) if block.language == "sh"]


def public_calls(tree: ast.Module) -> Iterator[tuple[Any, ast.Call]]:
    """Calls of what `lorank` offers, by `lorank.NAME(...)` or by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = ast.unparse(node.func)
            name = named.removeprefix("lorank.")
            if named.startswith("lorank.") and "." not in name:
                assert name in lorank.__all__, named
            if name in lorank.__all__:
                yield getattr(lorank, name), node


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_imports_and_calls_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                assert find_spec(one.name), one.name
        elif isinstance(node, ast.ImportFrom):
            module = import_module(str(node.module))
            for one in node.names:
                assert hasattr(module, one.name), f"{node.module}.{one.name}"
    for called, call in public_calls(tree):
        inspect.signature(called).bind(*call.args, **{str(keyword.arg): None for keyword in call.keywords})


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_name_scripts_targets_and_options_that_there_are(block: Block) -> None:
    targets = set(re.findall(r"^([a-z]+):", Path("Makefile").read_text(encoding="utf-8"), re.M))
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "make":
            assert targets >= {word for word in words[1:] if "=" not in word}, line
        for script in (word for word in words if word.endswith(".py")):
            assert Path(script).is_file(), line
            if "--plugin" in words or words[0] == "lorank":
                continue
            behind = words[words.index(script) + 1 :]
            text = "".join(file.read_text(encoding="utf-8") for file in Path(script).parent.rglob("*.py"))
            for option in (word for word in behind if word.startswith("--")):
                assert f'"{option}"' in text, f"{line}: {option}"


def test_reasons_are_for_blocks() -> None:
    """A reason that is not in the line above a block is for nothing."""
    for page in PAGES:
        reasons = len(re.findall(r"^<!-- not run:", page.read_text(encoding="utf-8"), re.M))
        assert reasons == sum(block.why_not is not None for block in blocks(page)), page


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    headings = re.findall(r"^### `(.+)`$", Path("docs/troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(headings) > 15
    said = "\n".join(
        node.value
        for path in Path("src/lorank").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert not [heading for heading in headings if heading not in said]


def test_the_page_of_commands_is_the_one_that_the_code_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("docs")
    page = import_module("write_commands_page").page
    assert Path("docs/commands.md").read_text(encoding="utf-8") == page(), "run `python docs/write_commands_page.py`"
