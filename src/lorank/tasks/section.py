"""Where the examples of a task come from, and what the task is."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lorank.tasks.text_tasks import TEXT_TASKS
from lorank.validation import Section

GENERAL_TEXT = "general text"  # how it is called among test parts


class SampleSection(Section):
    """A random share of the rows of each part, the same for every seed of a run."""

    train: float = Field(1.0, gt=0, le=1, description="share of the training rows that is used")
    test: float = Field(1.0, gt=0, le=1, description="share of the rows of every test part that is used")
    seed: int = Field(0, ge=0, description="of the draw; apart from the run's seed, so all runs use the same rows")


class DataSection(Section):
    """Where examples come from: two files, or a hub name with two splits."""

    train: str | None = Field(
        None, description="csv, tsv (quotes are part of the text), json, jsonl or parquet file to train on"
    )
    test: str | Mapping[str, str] | None = Field(
        None,
        description="file that is evaluated once at the end, never used for scoring or stopping; several: names with files, the "
        "first is the one that methods are compared on",
    )
    name: str | None = Field(None, description="hub name instead of files, for example nyu-mll/glue")
    config: str | None = Field(None, description="configuration of the hub data set, for example cola")
    train_split: str = Field("train", description="split of the hub data set to train on")
    test_split: str | Mapping[str, str] = Field(
        "validation", description="split that is evaluated once at the end; several: names with splits"
    )
    sample: SampleSection | None = Field(None, description="use a random share of the rows; null: all of them")
    text: tuple[str, ...] = Field(
        ("text",), min_length=1, max_length=2, description="one or two text columns; of summarization: document"
    )
    label: str = Field("label", description="label column; of summarization: summary")
    task: Literal["classification", "regression", "summarization", "instruction", "boolq", "arc", "gsm8k", "aqua"] = (
        Field(
            "classification",
            description="what the label is, or which text is generated; docs/tasks.md has columns and prompts",
        )
    )
    max_length: int = Field(128, ge=8, description="longer texts, or prompts, are cut, in tokens")
    prompt: str | None = Field(
        None, description="of text-generation tasks: template with columns in braces; null: the task's"
    )
    max_target_length: int | None = Field(
        None,
        ge=2,
        description="of text-generation tasks: longer targets are cut, in tokens; also the generation limit; null: the task's",
    )
    beams: int = Field(1, ge=1, description="of text-generation tasks: width of the beam search; 1 is greedy")

    general_text: str | None = Field(
        None,
        description="of text-generation tasks with a decoder: a text file that is never trained on; how much its loss grows over "
        "the base model's is reported, as a measure of forgetting",
    )

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _columns_of_summaries(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("task") == "summarization":
            return {"text": ("document",), "label": "summary", **content}
        return content

    @property
    def test_parts(self) -> dict[str, str]:
        """Name of each part that is evaluated -> its file or split, the first one first; a single one is called test."""
        given = self.test if self.name is None else self.test_split
        return dict(given) if isinstance(given, Mapping) else {"test": str(given)}

    @property
    def target_length(self) -> int:
        """Most tokens of a target."""
        return self.max_target_length or TEXT_TASKS[self.task].tokens

    @property
    def writes(self) -> bool:
        """Whether the answer is a text, in place of a class or a number."""
        return self.task not in ("classification", "regression")

    @model_validator(mode="after")
    def _fits_the_task(self) -> "DataSection":
        known = DataSection.model_fields
        if not self.writes:
            for key in ("prompt", "max_target_length", "beams", "general_text"):
                if getattr(self, key) != known[key].default:
                    raise ValueError(f"{key} is for tasks that write a text, {self.task} does not; leave it out")
        elif self.task != "summarization":
            for key in ("text", "label"):
                if getattr(self, key) != known[key].default:
                    raise ValueError(f"{key}: the columns of {self.task} are its own (docs/tasks.md); leave it out")
        if self.prompt is not None and "{" not in self.prompt.rpartition("}")[0]:
            raise ValueError('prompt names no column in braces, for example "{question} Answer:"')
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.name is None) == (self.train is None):
            raise ValueError("give either train and test (files) or name (hub), not both and not neither")
        if self.name is None and self.test is None:
            raise ValueError("a test file is missing: it is what the run is judged on")
        for key, parts in (("test", self.test), ("test_split", self.test_split)):
            if isinstance(parts, Mapping):
                _check_names(key, list(parts))
        return self


def _check_names(key: str, names: list[str]) -> None:
    """Refuse names of test parts that are taken, or that cannot name a folder."""
    if not names:
        raise ValueError(f"{key}: give at least one part")
    for place, name in enumerate(names):
        taken = name in ("train", GENERAL_TEXT) or (name == "test" and place)
        if taken or not re.fullmatch(r"[A-Za-z0-9_][\w -]*", name):
            raise ValueError(
                f"{key}: a part is called {name!r}; allowed: letters, digits, spaces, - and _, but for train, {GENERAL_TEXT}, "
                "and test where it is not the first"
            )
        if name.startswith("checkpoint-"):
            raise ValueError(f"{key}: a part is called {name!r}, as checkpoints are; give it another name")
