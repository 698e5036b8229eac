"""Loss, perplexity and metrics on the user's own data: a file of examples, or the test parts of a recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console

from lorank.errors import AdapterError, DataError, RecipeError
from lorank.evaluation.question import Question
from lorank.models.adapter_checks import check_adapter_labels, check_adapter_task
from lorank.models.saved_model import SavedModel
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.runs.data_file import DataFile
from lorank.runs.file_examples import read_data_file
from lorank.runs.prepare import prepare
from lorank.runs.recipe_values import pretrained_of
from lorank.starter.columns import LABELLED, task_of_columns
from lorank.tasks.data import TaskData, content_hash
from lorank.tasks.evaluation import evaluate
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.files import read_rows
from lorank.tasks.loss_file import LOSSES, read_sums
from lorank.tasks.metrics import TOKENS, choose_metrics, need_texts
from lorank.tasks.text_evaluation import by_length, kept_losses
from lorank.tasks.text_tasks import TEXT_TASKS
from lorank.training.prepared import Prepared


@dataclass(frozen=True)
class OwnData:
    """Examples that are checked against a model.

    Attributes:
        prepared: base model, task and tokenizer.
        parts: name -> rows that are evaluated, the first part first.
        settings: of the evaluation.

    """

    prepared: Prepared
    parts: Mapping[str, Dataset]
    settings: EvaluationSettings


def prepare_own_data(model: SavedModel, question: Question, console: Console) -> OwnData:
    """Read and check the data of a question: no weights are loaded.

    Raises:
        LorankError: data that cannot be read, or that are for another task, other labels or another model; several findings are
            raised as one.

    """
    if isinstance(question.data, DataFile):
        found = read_data_file(model, _with_task(model, question.data, console))
        hashes = {"train": "not trained on", "test": content_hash(found.rows)}
        _, prepared = prepare(found.recipe, (), console, TaskData(found.rows, found.rows, found.label_names, hashes))
    else:
        prepared = _of_recipe(model, question, console)
    if question.generate and prepared.section.writes:
        metrics = choose_metrics(prepared.section.task, prepared.metrics)
        if not need_texts(metrics):
            raise RecipeError(
                f"--generate: no metric here ({', '.join(metrics)}) is of what is written; leave it out, or look at --samples"
            )
    if question.samples and not model.writes:
        raise RecipeError(f"--samples: {model.name} classifies texts, so there is nothing that it writes; leave it out")
    known = prepared.data.parts
    tests = {name: rows for name, rows in known.items() if name == "test" or name in prepared.data.more}
    tests = tests or {name: rows for name, rows in known.items() if name == "eval"}
    if not tests:
        raise DataError("--data: the recipe has no test part; give data.test=FILE behind it, or a file as --data")
    parts = {name: rows.select(range(question.first(len(rows)))) for name, rows in tests.items()}
    precision = prepared.settings.precision
    settings = EvaluationSettings(
        prepared.section, prepared.task_type, prepared.metrics, precision, question.batch_size, prepared.new_tokens
    )
    return OwnData(prepared, parts, settings)


def _with_task(model: SavedModel, file: DataFile, console: Console) -> DataFile:
    """A file for a model that writes, with the task that its columns say, where the user says nothing of task and columns.

    Raises:
        DataError: no task, or several, have such columns.

    """
    if not model.writes or file.task is not None or file.text or file.label:
        return file
    names = read_rows(file.path, ()).names
    if {"text", "label"} <= set(names):
        return file
    columns = task_of_columns(read_rows(file.path, names), None, (), "")
    if columns.task in LABELLED:
        raise DataError(
            f"--data: {file.path.name} has the columns {', '.join(names)}, and {model.name} writes texts; give a prompt's column "
            "as --text and that of its answer as --label, or --task (chat, completion, text, ...)"
        )
    console.print(f"--data: task {columns.task} ({columns.why})", highlight=False, markup=False)
    return replace(file, task=columns.task)


def _of_recipe(model: SavedModel, question: Question, console: Console) -> Prepared:
    recipe = question.data
    assert isinstance(recipe, Recipe)
    if model.adapter is None:
        update = {"name": model.base.name, "revision": None}
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})
    else:
        check_adapter_task(model.adapter, pretrained_of(recipe), recipe.data.task, writes=recipe.data.writes)
    if recipe.data.writes != model.writes:
        raise RecipeError(f"--data: data.task {recipe.data.task} is not what {model.name} was trained for")
    _, prepared = prepare(recipe, (), console)
    names = prepared.data.label_names
    if not model.writes and model.adapter is not None:
        check_adapter_labels(model.adapter, prepared.base, names)
    elif not model.writes and (model.labels != (len(names) or 1) or (model.label_names or names) != names):
        raise AdapterError(
            f"{model.name} has a head for {model.labels} labels, {', '.join(map(repr, model.label_names[:5]))}, and the data of "
            f"the recipe have {len(names) or 1}: {', '.join(map(repr, names[:5]))}; give the recipe that trained it"
        )
    return prepared


def evaluate_part(model: Any, own: OwnData, part: str, *, generate: bool, directory: Path) -> dict[str, Any]:
    """Loss and metrics of a model on a part; the losses of examples are left in `directory/losses.npy`.

    The loss is the mean over all targets: Σ over examples of their summed loss / Σ over examples of their number of targets. A
    target is a token that is taught (text), or an example (class, number).

    Args:
        model: in evaluation mode.
        own: of `prepare_own_data`.
        part: its name.
        generate: of models that write: also write an answer for each row.
        directory: Trainer's to work in; answers are left there in `predictions.jsonl`.

    Returns:
        `rows`, `loss` and `metrics`, and, of models that write, `tokens` and `perplexity = exp(loss)`.

    """
    prepared, rows = own.prepared, own.parts[part]
    directory.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    settings, task = own.settings, prepared.section.task
    if task in TEXT_TASKS and not generate:  # what needs no text
        settings = replace(settings, metrics=tuple(n for n in choose_metrics(task, prepared.metrics) if n in TOKENS))
    if settings.metrics != ():
        data = replace(prepared.data, test=rows)
        metrics, _ = evaluate(model, data, prepared.tokenizer, settings, directory)
    else:
        sorted_rows = by_length(rows, prepared.tokenizer, own.settings)
        kept_losses(model, sorted_rows, prepared.tokenizer, own.settings, directory)
    processes().wait_for_everyone()
    sums, counts = read_sums(directory / LOSSES)
    loss = float(sums.sum() / counts.sum())
    found: dict[str, Any] = {"rows": len(rows), "loss": loss if math.isfinite(loss) else None}
    if prepared.section.writes:
        found |= {"tokens": int(counts.sum()), "perplexity": math.exp(loss) if loss < 700 else None}
    found["metrics"] = {name: value for name, value in metrics.items() if name not in found}
    return found
