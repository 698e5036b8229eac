"""A plain file of examples, given in place of a recipe."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """A csv, tsv, json, jsonl or parquet file of examples.

    Attributes:
        path: of the file.
        text: one or two columns of text; none: `text`, or what the task has.
        label: column of the label, or of the text that is to be written; empty: `label`, or what the task has.
        task: as `data.task` of a recipe; None: labels for a classifier, else a text as prompt and a label that is to be written.
        max_length: longer texts, or prompts, and targets are cut, in tokens; None: as the task has it.

    """

    path: Path
    text: tuple[str, ...] = ()
    label: str = ""
    task: str | None = None
    max_length: int | None = None
