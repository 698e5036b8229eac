"""The output directory of a run: one recipe, one data set, one process group at a time."""

import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lorank.artefact import make_folder, write_atomically
from lorank.errors import LorankWarning, OutputError, RecipeError, one_line
from lorank.methods import METHODS
from lorank.methods.plugins import loaded_plugins
from lorank.models.base_dtype import dtype_of_checkpoint
from lorank.models.base_fingerprint import base_fingerprint
from lorank.models.loading import config_of
from lorank.processes import processes
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe
from lorank.recipe.yaml_text import yaml_content
from lorank.runs.recipe_values import pretrained_of
from lorank.tasks.data import TaskData
from lorank.validation import first_difference


@contextmanager
def locked_directory(directory: Path, recipe: Recipe, data: TaskData, provenance: Mapping[str, Any]) -> Iterator[None]:
    """Hold `directory` for this run, alone; a first run writes `recipe.yaml`, a later one must be the same run.

    The lock goes with the process, so a killed run leaves none behind.

    Raises:
        OutputError: the directory is a file, or holds something else, another recipe, other data, another base model, or a run
            in progress.

    """
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file; give a directory as --output")
    if not processes().is_main_process:
        processes().wait_for_everyone()
        yield
        return
    _refuse_foreign(directory)
    make_folder(directory)
    try:
        with FileLock(directory / ".lock", timeout=0):
            _remove_partial(directory)
            _check_or_write(directory, recipe, data, provenance)
            processes().wait_for_everyone()
            yield
            if not (directory / "recipe.yaml").is_file():
                raise OutputError(
                    f"{directory} was removed or emptied while the run was at work: what is there now is not whole. Remove it, "
                    "and run the same command again"
                )
    except Timeout:
        raise OutputError(
            f"{directory} is in use by another lorank process; wait for it, or give another --output"
        ) from None


def as_begun(recipe: Recipe, directory: Path, say: Callable[[str], None] = lambda _: None) -> Recipe:
    """The recipe as the version read it that began the run in `directory`: with a search as long as `train`, with its defaults.

    This version writes how long a search is, which presets baselines have, and in which dtype the base model is loaded (earlier
    versions: fp32, always) into the recipe of the run. `say` is called with a line where that dtype is not the checkpoint's.
    """
    try:
        stands = yaml_content((directory / "recipe.yaml").read_text(encoding="utf-8"), of_run=True)
        stood = make_recipe(stands)
        if recipe.model.dtype is None and not _names_dtype(stands):
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "fp32"})})
            if (usual := dtype_of_checkpoint(config_of(pretrained_of(recipe)))) != "fp32":
                say(f"model.dtype: fp32, as {directory} was begun by an earlier version; the checkpoint is in {usual}")
    except (OSError, ValueError, RecipeError, TypeError, AttributeError):
        return recipe  # it is looked at again when the directory is locked
    for method in (recipe.method, *recipe.baselines):
        if method not in METHODS or method not in (stood.method, *stood.baselines):
            continue
        before, now = stood.of(method), recipe.of(method)
        shorter = now.search_share is not None and not (before.search is not None and before.search.says_length)
        unnamed = method != stood.method and "preset" not in stood.baselines[method]
        if shorter or (unnamed and before.preset != now.preset):
            return recipe.model_copy(update={"resolved": stands.get("resolved")})
    return recipe


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not (directory / "recipe.yaml").exists():
        foreign = [entry.name for entry in directory.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise OutputError(
                f"{directory} is not empty ({foreign[0]}) and holds no recipe.yaml; give another --output"
            )


def _remove_partial(directory: Path) -> None:
    """What killed processes left half written: the lock is held, so nobody is at work on it."""
    for path in directory.rglob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_or_write(directory: Path, recipe: Recipe, data: TaskData, provenance: Mapping[str, Any]) -> None:
    path = directory / "recipe.yaml"
    content = recipe.model_dump(mode="json", exclude={"resolved"})
    resolved = {
        "data": dict(data.hashes),
        "labels": list(data.label_names),
        "base": base_fingerprint(pretrained_of(recipe)),
        "base_parameters": provenance["base_parameters"],
        "versions": provenance["versions"],
        "python": platform.python_version(),
    }
    plugins = {Path(file).name: sha for file, sha in loaded_plugins().items()}
    if plugins:
        resolved["plugins"] = plugins
    if not path.exists():
        text = yaml.safe_dump({**content, "resolved": resolved}, sort_keys=False, allow_unicode=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    try:
        stands = yaml_content(path.read_text(encoding="utf-8"), of_run=True)
        before = stands.pop("resolved")
        hashes, versions = before["data"], before["versions"]
        if not _names_dtype(stands):
            stands = _in_fp32(stands)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise OutputError(f"{path} was not written by lorank or was damaged; give another --output") from None
    try:
        # Read again, so that a key that a later version added has its default there too.
        stood, asked = _with_baselines(make_recipe(stands)), _with_baselines(recipe)
    except RecipeError as error:
        raise OutputError(f"{path} is no recipe of this version: {one_line(error)}; give another --output") from None
    goes_on = _goes_on_by_skipping(stood, asked)
    if difference := first_difference(goes_on or stood, asked):
        raise OutputError(f"{directory} belongs to another recipe: {difference}; give another --output, or remove it")
    # Sums are over the numbers of classes: classes that were renamed give the same.
    seen = {**hashes, "labels": before.get("labels")}
    if difference := first_difference(seen, {**resolved["data"], "labels": resolved["labels"]}):
        raise OutputError(f"{directory}: the data changed since this run began: {difference}; give another --output")
    # A folder of an earlier version does not say of which weights it is, or says {} of a model on the hub.
    if before.get("base") and (difference := first_difference(before["base"], resolved["base"])):
        raise OutputError(
            f"{directory}: the base model or its tokenizer changed since this run began: {difference}; give another --output"
        )
    known = before.get("plugins") or {}
    if difference := first_difference(known, {name: plugins.get(name) for name in known}):
        raise OutputError(
            f"{directory}: a plugin is missing or changed since this run began (SHA-256 of its file): {difference}; give the "
            "--plugin as it was, or another --output"
        )
    if goes_on is not None:
        text = yaml.safe_dump({**content, "resolved": before}, sort_keys=False, allow_unicode=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if difference := first_difference(versions, resolved["versions"]):
        warnings.warn(f"{directory}: versions changed since this run began: {difference}", LorankWarning, stacklevel=4)


def _goes_on_by_skipping(stood: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe of a run, its stages with `on_nonfinite: skip` where that is asked for now; None where none changes.

    Up to the first step that is not finite, which stopped the run, both are the same.
    """
    changed = {**stood, "baselines": {**stood["baselines"]}}
    if set(asked["baselines"]) == set(changed["baselines"]):
        for name, one in asked["baselines"].items():
            changed["baselines"][name] = _goes_on_by_skipping_in(changed["baselines"][name], one)
    changed = _goes_on_by_skipping_in(changed, asked)
    return changed if changed != stood else None


def _goes_on_by_skipping_in(stood: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of one method."""
    key, found = "on_nonfinite", dict(stood)
    for stage in ("train", "search"):
        before, now = stood.get(stage), asked.get(stage)
        # What a search leaves out is as in train.
        if before is not None and now is not None and (before.get(key, "stop"), now.get(key)) == ("stop", "skip"):
            found[stage] = {**before, key: "skip"}
    return found


def _names_dtype(stands: Any) -> bool:
    """Whether the recipe of a run says in which dtype its base model is; those of earlier versions do not."""
    model = stands["model"]
    return isinstance(model, Mapping) and "dtype" in model


def _in_fp32(stands: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run of an earlier version; one of format 1 says so as it is read."""
    model = stands["model"]
    return {**stands, "model": {**model, "dtype": "fp32"} if isinstance(model, Mapping) else model}


def _with_baselines(recipe: Recipe) -> dict[str, Any]:
    """All that a recipe says, its baselines written out: what they give themselves and what they take over is one."""
    baselines = {name: recipe.of(name).model_dump(mode="json", exclude={"resolved"}) for name in recipe.baselines}
    return {**recipe.model_dump(mode="json", exclude={"resolved", "baselines"}), "baselines": baselines}
