"""Run a recipe and kill this process with SIGKILL at a given point: `killed_run.py RECIPE DIRECTORY WHERE COUNT`."""

import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from peft import PeftModel
from rich.console import Console

import lorank.runs.checks as checks
import lorank.runs.run as run_module
from lorank.recipe.files import load_recipe
from lorank.scores import ImportanceScores
from lorank.training.trainer import StageTrainer


def kill_in(
    owner: Any, name: str, count: int, when: Callable[..., bool] = lambda *_: True, after: bool = False
) -> None:
    """Replace `owner.name` by a form that kills the process at its `count`-th call for which `when` holds."""
    real, calls = getattr(owner, name), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += when(*arguments)
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*arguments, **options)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, deadly)


def main(recipe: str, directory: str, where: str, count: int) -> None:
    if where in ("search", "train", "igu-lora"):
        kill_in(StageTrainer, "training_step", count, lambda self, *_: where in self.stage.split(", "))
    elif where == "checkpoint":  # adapter written, optimizer not yet
        kill_in(StageTrainer, "_save_optimizer_and_scheduler", count)
    elif where == "scores":  # search is finished, its scores are not written
        kill_in(ImportanceScores, "save", 1)
    elif where == "cut":  # scores are saved; the first call is the check of the limits
        kill_in(checks, "allocate", 2, after=True)
    elif where == "plan":  # written under its temporary name, not renamed
        kill_in(pathlib.Path, "replace", 1, lambda self, target: target.name == "plan.json")
    elif where == "adapter":
        kill_in(
            PeftModel,
            "save_pretrained",
            1,
            lambda self, target, *_: str(target).endswith(".adapter.partial"),
            after=True,
        )
    else:
        raise SystemExit(f"unknown point {where}")
    run_module.run(load_recipe(recipe), directory, Console(quiet=True))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
