import inspect
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

import lorank
from lorank import errors


@pytest.mark.parametrize("name", lorank.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(lorank, name) is not None


def test_dir_lists_what_is_offered() -> None:
    assert dir(lorank) == sorted(lorank.__all__)
    offered = {
        "score",
        "allocate",
        "prune",
        "RankAllocation",
        "AllocationLoop",
        "run",
        "Recipe",
        "load_recipe",
        "export",
    }
    offered |= {
        "check_saved_adapter",
        "verify",
        "register",
        "Method",
        "Budget",
        "RankPlan",
        "ImportanceScores",
        "SeveralFindings",
    }
    classes = inspect.getmembers(errors, inspect.isclass)
    family = {name for name, kind in classes if kind.__module__ == errors.__name__ and not name.startswith("_")}
    assert set(dir(lorank)) == offered | family | {"__version__"}


def test_names_that_are_not_offered_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        lorank.scoer  # noqa: B018


def test_no_module_takes_the_place_of_an_offered_name() -> None:
    """Importing `lorank.x` sets `x` in `lorank`, before anything is asked of `__getattr__`."""
    modules = {each.name for each in iter_modules(lorank.__path__)} - {"__main__"}
    assert not modules & set(lorank.__all__)
    for name in modules:
        import_module(f"lorank.{name}")
    assert all(callable(getattr(lorank, name)) for name in ("score", "allocate", "prune", "run", "export", "verify"))


def test_importing_lorank_alone_is_quick() -> None:
    code = "import sys, lorank; dir(lorank); lorank.LorankError; print(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
