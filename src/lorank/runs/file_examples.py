"""A plain file of examples as data for a trained adapter or model, which says itself what its task is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from lorank.errors import DataError, listed, shown
from lorank.models.saved_model import SavedModel
from lorank.recipe.recipe import Recipe
from lorank.runs.data_file import DataFile
from lorank.tasks.data import load_task_data

# What the keys of a recipe are called where a file is given in place of it.
_OPTIONS = {"data.train": "--data", "data.text": "--text", "data.label": "--label", "data.task": "--task"}


@dataclass(frozen=True)
class FileData:
    """The examples of a file, as a model that is trained already takes them.

    Attributes:
        recipe: of base model and task; nothing is trained by it.
        rows: as `load_task_data` makes them; labels are numbers of the model's classes.
        label_names: of the model's classes; none of regressions and of tasks that write.

    """

    recipe: Recipe
    rows: Dataset
    label_names: tuple[str, ...]


def read_data_file(model: SavedModel, file: DataFile) -> FileData:
    """Read the examples of a file for a model.

    A classifier takes its labels from the `label_names.json` beside its adapter, or from its config. Without names, whole numbers
    are numbers of classes, and other labels must be as many as the head has outputs; they are then in the order of their names.
    A head of one output is regression. For models that write, where no task is named, the loss is that of the label column's
    text, with the text column as the prompt.

    Raises:
        DataError: as `load_task_data`, a task that the model is not for, or labels that it does not know.
        RecipeError: as `Recipe`.

    """
    columns = {"text": file.text or ("text",), "label": file.label or "label"}
    task: dict[str, Any]
    if file.task is not None:
        given = {"text": file.text, "label": file.label}
        task = {"task": file.task, **{key: value for key, value in given.items() if value}}
    elif not model.writes:
        task = {"task": "regression" if model.labels == 1 else "classification", **columns}
    else:
        prompt = "\n".join(f"{{{name}}}" for name in columns["text"])
        task = {"task": "summarization", **columns, "prompt": prompt}
    if file.max_length is not None:
        task["max_length"] = file.max_length
    if file.task == "chat" and model.chat_template is not None:
        task["chat_template"] = str(model.chat_template)
    part = {"train": str(file.path), "test": str(file.path)}
    base = {key: value for key, value in vars(model.base).items() if value is not None}
    recipe = Recipe(model=base, method="lora", budget="r=1", data={**part, **task})
    _check_task(model, recipe)
    try:
        data = load_task_data(recipe.data)
    except DataError as error:  # the file is read as both parts
        lines = [
            line for line in str(error).splitlines() if not line.startswith("data.test:") and ": test " not in line
        ]
        raise DataError("\n".join(_without_part(line, file) for line in lines) or str(error)) from None
    rows, names = data.train, model.label_names
    if recipe.data.task == "classification":
        names, numbers = _as_the_model_has_them(rows, data.label_names, model, file)
        rows = rows.remove_columns("labels").add_column("labels", numbers)
    return FileData(recipe, rows, names if recipe.data.task == "classification" else ())


def _without_part(line: str, file: DataFile) -> str:
    """What is wrong with the file, which is nobody's training data, in the words of the options."""
    key, space, rest = line.partition(" ")
    word = key.rstrip(":")
    key = key.replace(word, _OPTIONS.get(word, word))
    return re.sub(
        r"\btrain (has no column|example)", lambda match: f"{file.path.name} {match[1]}", key + space + rest, count=1
    )


def _check_task(model: SavedModel, recipe: Recipe) -> None:
    task = recipe.data.task
    if recipe.data.writes != model.writes:
        does = "writes texts" if model.writes else "classifies texts"
        raise DataError(
            f"--task {task}: {model.name} {does}, and this task is for others; leave --task out, or give another one"
        )
    if not model.writes and (model.labels == 1) != (task == "regression"):
        outputs = "1 output" if model.labels == 1 else f"{model.labels} outputs"
        raise DataError(f"--task {task}: the head of {model.name} has {outputs}; leave --task out")


def _as_the_model_has_them(
    rows: Dataset, found: Sequence[str], model: SavedModel, file: DataFile
) -> tuple[tuple[str, ...], list[int]]:
    """The model's classes, and the class of each row among them."""
    names, width, column = model.label_names, model.labels, file.label or "label"
    whole = all(name.isdecimal() for name in found)
    if whole and not any(name.isdecimal() for name in names):
        order = [int(name) for name in found]
        if max(order) >= width:
            raise DataError(
                f"{file.path}: {column!r} has the class number {max(order)}, and the adapter's head has {width} outputs, "
                f"from 0 to {width - 1}; give the data that it was trained for"
            )
        names = names or tuple(map(str, range(width)))
    elif names:
        if strange := [name for name in found if name not in names]:
            raise DataError(
                f"{file.path}: {column!r} has {shown(strange[0])}, which the adapter was not trained for; it knows "
                f"{listed(map(repr, names))}"
            )
        order = [names.index(name) for name in found]
    elif len(found) == width:
        names, order = tuple(found), list(range(width))
    else:
        raise DataError(
            f"{file.path}: {column!r} has {len(found)} different labels, the adapter's head has {width} outputs, and there "
            "is no label_names.json that says which is which; give numbers of classes, or the recipe that trained it as --data"
        )
    return names, [order[number] for number in rows["labels"][:]]
