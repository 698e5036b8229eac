"""Which task a table of rows is for: by the names of its columns, and what is in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorank.errors import DataError, listed, shown
from lorank.tasks.files import Rows
from lorank.tasks.labels import LabelColumn, regression_labels
from lorank.tasks.section import SFT_COLUMNS
from lorank.tasks.text_tasks import TEXT_TASKS

LABELLED = ("classification", "regression")
_COLUMNS = {
    **{name: task.columns for name, task in TEXT_TASKS.items()},
    **SFT_COLUMNS,
    "summarization": ("document", "summary"),
}
_LABELS = ("label", "labels", "class", "category", "target", "score", "rating", "stars", "sentiment")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_TEXTS = ("text", "sentence", "review", "content", "body")
_NUMBERS = ("id", "idx", "index", "guid", "uid", "uuid")  # of rows
_PROMPTS = ("prompt", "question", "instruction", "input", "query")  # names that may be of a prompt,
_ANSWERS = ("completion", "answer", "output", "response", "reply")  # and of what is to be written behind it


@dataclass(frozen=True)
class TaskColumns:
    """A task, and the columns that a recipe has to name for it.

    Attributes:
        task: as `data.task`.
        text: columns of text; none where the columns of the task are its own.
        label: column of the label, or of the text that is to be written; empty where the columns are the task's own.
        why: it is this task.

    """

    task: str
    text: tuple[str, ...] = ()
    label: str = ""
    why: str = ""


def task_of_columns(rows: Rows, task: str | None, text: tuple[str, ...], label: str) -> TaskColumns:
    """The task of rows; what is given is taken as it is.

    Args:
        rows: the first ones.
        task: that was asked for; None: by the columns.
        text: columns that were asked for; none: by their names.
        label: the same.

    Raises:
        DataError: columns that are asked for and are not there, no task that fits, or several.

    """
    for name in (*text, *([label] if label else ())):
        if name not in rows.names:
            raise DataError(f"there is no column {shown(name)}; the data have {listed(rows.names)}")
    if len(text) > 2:
        raise DataError(f"--text names {len(text)} columns ({listed(text)}); give one or two")
    if task is not None:
        return _asked_for(rows, task, text, label)
    if text or label:
        return _labelled(rows, text, label)
    fitting = _fitting(rows)
    if len(fitting) > 1:
        raise DataError(f"the columns {listed(rows.names)} fit several tasks: {', '.join(fitting)}; give one as --task")
    if fitting:
        return TaskColumns(fitting[0], why=f"columns {listed(_present(rows, fitting[0]))}")
    if any(name in rows.names for name in _LABELS):
        return _labelled(rows, text, label)
    if "text" in rows.names:
        return TaskColumns("text", why="column text, and no label")
    raise DataError(_fits_none(rows))


def _fits_none(rows: Rows) -> str:
    """That no task has these columns, which tasks there are, and what to type."""
    prompt, answer = (
        next((name for name in rows.names if name.lower() in known), None) for known in (_PROMPTS, _ANSWERS)
    )
    prompt, answer = prompt or "COLUMN", answer or "COLUMN"
    own = [f"{task} ({listed(columns)})" for task, columns in _COLUMNS.items()]
    return (
        f"the columns {listed(rows.names)} fit no task by themselves. For classes give --task classification --text COLUMN "
        f"--label COLUMN (or regression, for numbers). To let a decoder write an answer, rename the columns to prompt and "
        f"completion; or give --task summarization --text {prompt} --label {answer}, which puts 'Summary:' between them unless "
        f"data.prompt says otherwise. Tasks with columns of their own: {'; '.join(own)}"
    )


def _present(rows: Rows, task: str) -> Sequence[str]:
    if task == "chat" and "messages" not in rows.names:
        return ("conversations",)
    return _COLUMNS[task]


def _fitting(rows: Rows) -> list[str]:
    """Tasks whose own columns are all there; text alone says too little."""
    found = [
        task
        for task in _COLUMNS
        if task not in ("text", "gsm8k") and all(c in rows.names for c in _present(rows, task))
    ]
    if not found and {"question", "answer"} <= set(rows.names):
        answers = rows.columns["answer"]
        found += ["gsm8k"] if all(isinstance(one, str) and "####" in one for one in answers) else []
    return found


def _asked_for(rows: Rows, task: str, text: tuple[str, ...], label: str) -> TaskColumns:
    why = "as --task says"
    if task in LABELLED:
        return _labelled(rows, text, label, task)
    if task == "summarization" and (text or label):
        return TaskColumns(task, text or ("document",), label or "summary", why)
    if task not in _COLUMNS:
        raise DataError(f"--task {task} is unknown; allowed: {', '.join((*LABELLED, *_COLUMNS))}")
    if text or label:
        raise DataError(f"--text and --label are not of {task}, whose columns are its own; leave them out")
    missing = [name for name in _present(rows, task) if name not in rows.names]
    if missing:
        more = "; or name yours: --text and --label" if task == "summarization" else ""
        raise DataError(f"--task {task} needs the column {missing[0]!r}; the data have {listed(rows.names)}{more}")
    return TaskColumns(task, why=why)


def _labelled(rows: Rows, text: tuple[str, ...], label: str, task: str | None = None) -> TaskColumns:
    label = label or _label_of(rows)
    text = text or _texts_of(rows, label)
    kind, why = _kind_of(rows, label)
    if task == "classification" and kind == "regression":
        raise DataError(
            f"--task classification: {why}, which are no classes; give --task regression, or another --label"
        )
    return TaskColumns(task or kind, text, label, why if task is None else "as --task says")


def _label_of(rows: Rows) -> str:
    found = [name for name in _LABELS if name in rows.names]
    if len(found) == 1:
        return found[0]
    said = f"several may be the label: {listed(found)}" if found else f"none is called {', '.join(_LABELS)}"
    raise DataError(f"of the columns {listed(rows.names)} {said}; give one as --label")


def _texts_of(rows: Rows, label: str) -> tuple[str, ...]:
    for pair in _PAIRS:
        if set(pair) <= set(rows.names):
            return pair
    found = [name for name in _TEXTS if name in rows.names and name != label]
    if len(found) != 1:
        others = [name for name in rows.names if name != label and name.lower() not in _NUMBERS]
        found = [name for name in others if _is_text(rows.columns[name])]
    if len(found) == 1:
        return (found[0],)
    raise DataError(
        f"of the columns {listed(rows.names)} {len(found)} may be the text{': ' + listed(found) if found else ''}; give one "
        "or two as --text"
    )


def _is_text(values: Sequence[Any]) -> bool:
    """Strings that are not all numbers, as those of a csv file are."""
    return all(isinstance(value, str) for value in values) and not all(map(_is_number, values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind_of(rows: Rows, label: str) -> tuple[str, str]:
    column = LabelColumn("train", label, rows)
    try:
        numbers = regression_labels(column)
    except DataError:
        numbers = []
    if any(not number.is_integer() for number in numbers):
        return "regression", f"{label!r} holds numbers with fractions"
    if column.classes is not None:
        return "classification", f"{label!r} is a ClassLabel of {len(column.classes)} classes"
    different = len(set(column.named()))
    if different == len(rows) > 20 and not numbers:
        raise DataError(
            f"every row has another string in {label!r}, so it is no class; if it is a text that is to be written, give "
            "--task summarization"
        )
    return "classification", f"{different} different labels in {label!r} in the first {len(rows):,} rows"
