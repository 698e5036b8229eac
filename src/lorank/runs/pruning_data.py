"""A plain file of labelled examples as the data of pruning: base model and task are those of the adapter."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import TaskType

from lorank.errors import AdapterError, DataError
from lorank.models.pretrained import Pretrained
from lorank.models.saved_model import read_adapter_config, read_saved_model
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import CalibrationSet
from lorank.runs.data_file import DataFile
from lorank.runs.file_examples import read_data_file
from lorank.tasks.data import TaskData, content_hash, hold_out


def recipe_of_file(adapter: Path, file: DataFile, seed: int = 0) -> tuple[Recipe, TaskData]:
    """A recipe and the data of an adapter and a file, as `prepare` takes them.

    At most half of the rows, and no more than are scored at a time usually, are what triplets are scored on (`train`); the others
    are what is measured on (`test`). The two share no text. Labels are read as by `read_data_file`.

    Raises:
        AdapterError: its config cannot be read, or is for another task.
        DataError: as `read_data_file`, or a single text.
        RecipeError: as `Recipe`.

    """
    kind = read_adapter_config(adapter).task_type
    if kind not in (TaskType.SEQ_CLS, TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        raise AdapterError(
            f"{adapter} is an adapter for {kind or 'no named task'}; a plain data file is for {TaskType.SEQ_CLS.value}, "
            f"{TaskType.CAUSAL_LM.value} and {TaskType.SEQ_2_SEQ_LM.value}: give the recipe that trained it as --data"
        )
    found = read_data_file(read_saved_model(str(adapter), Pretrained("")), file)
    if len(set(found.rows["content"][:])) < 2:
        raise DataError(
            f"{file.path} has a single text; pruning scores on some texts and measures on others, give more"
        )
    share = min(CalibrationSet().examples, len(found.rows) // 2) / len(found.rows)
    measured, scored = hold_out(found.rows, share, seed)
    return found.recipe, _task_data(scored, measured, found.label_names)


def _task_data(scored: Dataset, measured: Dataset, names: Sequence[str]) -> TaskData:
    hashes = {"train": content_hash(scored), "test": content_hash(measured)}
    return TaskData(scored, measured, tuple(names), hashes)
