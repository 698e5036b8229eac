"""A plain file of labelled examples as the data of pruning: base model and task are those of the adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import PeftConfig, TaskType

from lorank.errors import AdapterError, DataError
from lorank.models.adapted_model import head_width
from lorank.models.label_names import read_label_names
from lorank.models.loading import NOT_LOADABLE, load_config
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import CalibrationSet
from lorank.tasks.data import TaskData, content_hash, hold_out, load_task_data


@dataclass(frozen=True)
class DataFile:
    """A csv, tsv, json, jsonl or parquet file of labelled examples.

    Attributes:
        path: of the file.
        text: one or two columns of text.
        label: column of the label, or of the text that is to be written.

    """

    path: Path
    text: tuple[str, ...] = ("text",)
    label: str = "label"


def recipe_of_file(adapter: Path, file: DataFile, seed: int = 0) -> tuple[Recipe, TaskData]:
    """A recipe and the data of an adapter and a file, as `prepare` takes them.

    At most half of the rows, and no more than are scored at a time usually, are what triplets are scored on (`train`); the others
    are what is measured on (`test`). The two share no text.

    An adapter for classifiers takes its labels from the `label_names.json` beside it. Without it, whole numbers are numbers of
    classes, and other labels must be as many as the head has outputs; they are then in the order of their names. A head of one
    output is regression. Adapters for models that write are measured by the loss of the label column's text, with the text column
    as the prompt.

    Raises:
        AdapterError: its config cannot be read, or is for another task.
        DataError: as `load_task_data`, or labels that the adapter does not know.
        RecipeError: as `Recipe`.

    """
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (*NOT_LOADABLE, TypeError) as error:
        raise AdapterError(
            f"{adapter / 'adapter_config.json'} cannot be read ({type(error).__name__}); give a PEFT adapter"
        ) from None
    kind, base = config.task_type, str(config.base_model_name_or_path)
    revision = None if Path(base).is_dir() else config.revision
    names: tuple[str, ...] = ()
    if kind == TaskType.SEQ_CLS:
        names = read_label_names(adapter)
        width = len(names) or head_width(adapter) or int(load_config(base, revision=revision).num_labels)
        task = {"task": "regression" if width == 1 else "classification", "text": file.text}
    elif kind in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        width = 0
        task = {"task": "summarization", "text": file.text, "prompt": "\n".join(f"{{{name}}}" for name in file.text)}
    else:
        raise AdapterError(
            f"{adapter} is an adapter for {kind or 'no named task'}; a plain data file is for {TaskType.SEQ_CLS.value}, "
            f"{TaskType.CAUSAL_LM.value} and {TaskType.SEQ_2_SEQ_LM.value}: give the recipe that trained it as --data"
        )
    part = {"train": str(file.path), "test": str(file.path), "label": file.label}
    model = {"name": base, "revision": revision}
    recipe = Recipe(model=model, method="lora", budget="r=1", data={**part, **task})
    data = load_task_data(recipe.data)
    rows = data.train
    if width > 1:
        names, numbers = _as_the_adapter_has_them(data, names, width, file)
        rows = rows.remove_columns("labels").add_column("labels", numbers)
    if len(set(rows["content"][:])) < 2:
        raise DataError(
            f"{file.path} has a single text; pruning scores on some texts and measures on others, give more"
        )
    share = min(CalibrationSet().examples, len(rows) // 2) / len(rows)
    measured, scored = hold_out(rows, share, seed)
    return recipe, _task_data(scored, measured, names)


def _task_data(scored: Dataset, measured: Dataset, names: Sequence[str]) -> TaskData:
    hashes = {"train": content_hash(scored), "test": content_hash(measured)}
    return TaskData(scored, measured, tuple(names), hashes)


def _as_the_adapter_has_them(
    data: TaskData, names: tuple[str, ...], width: int, file: DataFile
) -> tuple[tuple[str, ...], list[int]]:
    """The adapter's classes, and the class of each row among them."""
    found = data.label_names
    whole = all(name.isdecimal() for name in found)
    if whole and not any(name.isdecimal() for name in names):
        order = [int(name) for name in found]
        if max(order) >= width:
            raise DataError(
                f"{file.path}: {file.label!r} has the class number {max(order)}, and the adapter's head has {width} outputs, "
                f"from 0 to {width - 1}; give the data that it was trained for"
            )
        names = names or tuple(map(str, range(width)))
    elif names:
        if strange := [name for name in found if name not in names]:
            raise DataError(
                f"{file.path}: {file.label!r} has {strange[0]!r}, which the adapter was not trained for; it knows "
                f"{', '.join(map(repr, names[:20]))}"
            )
        order = [names.index(name) for name in found]
    elif len(found) == width:
        names, order = found, list(range(width))
    else:
        raise DataError(
            f"{file.path}: {file.label!r} has {len(found)} different labels, the adapter's head has {width} outputs, and there "
            "is no label_names.json that says which is which; give numbers of classes, or the recipe that trained it as --data"
        )
    return names, [order[number] for number in data.train["labels"][:]]
