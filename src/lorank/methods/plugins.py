"""Methods from outside: entry points of installed packages, and Python files that a user names."""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from lorank.errors import LorankWarning, RecipeError, one_line
from lorank.methods.registry import METHODS, register

GROUP = f"{__package__}"  # of entry points: lorank.methods


class Plugin(NamedTuple):
    """A file that registered methods.

    Attributes:
        path: absolute.
        sha: SHA-256 of its content, when it was loaded.
        methods: names of the methods that it registered.

    """

    path: str
    sha: str
    methods: tuple[str, ...]


_LOADED: dict[str, Plugin] = {}


def load_entry_points() -> None:
    """Register the methods of installed packages: entry points of the group `lorank.methods`, each value a `Method`.

    Warns:
        LorankWarning: one that cannot be loaded, with its package; the others are loaded.

    """
    for entry in entry_points(group=GROUP):
        try:
            register(entry.load())
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "an unknown package"
            warnings.warn(
                f"entry point {entry.name} = {entry.value} ({GROUP}) of {package} gives no method: "
                f"{type(error).__name__}: {one_line(error)}; mend or remove {package}",
                LorankWarning,
                stacklevel=2,
            )


def load_plugin(path: str | Path) -> None:
    """Run a Python file that calls `lorank.register(...)`. The same file again is not run again.

    Raises:
        RecipeError: no such file, no Python file, one that fails (with its line), one that registers nothing, or a method whose
            name is taken; then no method of the file is registered.

    """
    file = Path(path).resolve()
    if not file.is_file():
        raise RecipeError(f"plugin {path}: {'is a folder' if file.is_dir() else 'no such file'}; give a Python file")
    if file.suffix != ".py":
        raise RecipeError(f"plugin {path}: is no Python file (.py); give a file that calls lorank.register(...)")
    try:
        source = file.read_bytes()
    except OSError as error:
        raise RecipeError(f"plugin {path}: cannot be read: {error.strerror}") from None
    key, sum_now = str(file), sha256(source).hexdigest()
    if key in _LOADED:
        if _LOADED[key].sha != sum_now:
            raise RecipeError(f"plugin {path}: changed since it was loaded; start lorank again")
        return
    if other := next((known for known in _LOADED if Path(known).name == file.name), None):
        raise RecipeError(f"plugin {path}: another plugin of that name is loaded, {other}; rename one of them")
    before = dict(METHODS)
    with _as_module(file) as module, _located(file, path):
        exec(compile(source, key, "exec"), vars(module))
        if not (new := tuple(name for name in METHODS if name not in before)):
            raise RecipeError(f"plugin {path}: registers no method; call lorank.register(lorank.Method(...)) in it")
    _LOADED[key] = Plugin(key, sum_now, new)


@contextmanager
def _as_module(file: Path) -> Iterator[ModuleType]:
    """A module for the file's names, which classes find by their `__module__`; what it registered goes if it fails."""
    module, before = ModuleType(f"lorank_plugin_{file.stem}"), dict(METHODS)
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        yield module
    except BaseException:
        del sys.modules[module.__name__]
        METHODS.clear()
        METHODS.update(before)
        raise


@contextmanager
def _located(file: Path, path: str | Path) -> Iterator[None]:
    """Name the file and its line in what goes wrong in it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(file) else (lines or [None])[-1]
        if line is None and isinstance(error, RecipeError):  # what this module says about the file
            raise
        said = str(error) if isinstance(error, RecipeError) else f"{type(error).__name__}: {one_line(error)}"
        raise RecipeError(f"plugin {path}{f', line {line}' if line else ''}: {said}") from error


def loaded_plugins() -> dict[str, str]:
    """Absolute path of each file that was loaded -> SHA-256 of its content."""
    return {plugin.path: plugin.sha for plugin in _LOADED.values()}


def plugin_of(method: str) -> Plugin | None:
    """The file that registered a method; None for those of lorank and of installed packages."""
    return next((plugin for plugin in _LOADED.values() if method in plugin.methods), None)
