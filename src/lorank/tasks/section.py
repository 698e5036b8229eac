"""Where the examples of a task come from, and what the task is."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lorank.tasks.text_tasks import TEXT_TASKS
from lorank.validation import Section

GENERAL_TEXT = "general text"  # how it is called among test parts
EVAL, SCORING = "eval", "scoring"  # parts that are evaluated while training, and that ranks are scored on
# Tasks of decoders whose rows TRL makes into tokens and trains on (its SFTTrainer), each with the columns that it needs.
SFT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
_SFT_LENGTH = 1024  # SFTConfig's max_length


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
        "first is the one that methods are compared on; chat, completion and text do without",
    )
    name: str | None = Field(None, description="hub name instead of files, for example nyu-mll/glue")
    config: str | None = Field(None, description="configuration of the hub data set, for example cola")
    eval: Annotated[float, Field(gt=0, lt=1)] | str | None = Field(
        None,
        description="what the loss is measured on while training: a file (a split, of a hub data set), or the share of the "
        "training rows that is held out for it; null: nothing. It may end the training (train.patience), the test part never",
    )
    scoring: str | None = Field(
        None,
        description="what ranks are scored on: a file (a split, of a hub data set); null: training rows, held out where "
        "the method has a scoring set",
    )
    stream: bool = Field(
        False,
        description="of chat, completion and text from the hub: rows are read while they are trained on, never all at once; then "
        "data.scoring and train.max_steps are needed",
    )
    train_split: str = Field("train", description="split of the hub data set to train on")
    test_split: str | Mapping[str, str] | None = Field(
        "validation",
        description="split that is evaluated once at the end; several: names with splits; null: none (chat, completion, text)",
    )
    sample: SampleSection | None = Field(None, description="use a random share of the rows; null: all of them")
    text: tuple[str, ...] = Field(
        ("text",), min_length=1, max_length=2, description="one or two text columns; of summarization: document"
    )
    label: str = Field("label", description="label column; of summarization: summary")
    task: Literal[
        "classification",
        "regression",
        "summarization",
        "instruction",
        "boolq",
        "arc",
        "gsm8k",
        "aqua",
        "chat",
        "completion",
        "text",
    ] = Field(
        "classification",
        description="what the label is, or which text is generated; docs/tasks.md has columns and prompts",
    )
    max_length: int = Field(
        128,
        ge=8,
        description=f"longer texts, or prompts, are cut, in tokens; of chat, completion and text: {_SFT_LENGTH}",
    )
    assistant_only: bool | None = Field(
        None,
        description="of chat: whether the loss is that of the assistant's tokens alone; null: where the chat template, or TRL's "
        "training template for it, marks them",
    )
    chat_template: str | None = Field(
        None, description="of chat: a Jinja file in place of the tokenizer's own chat template"
    )
    packing: bool = Field(
        False,
        description="of chat, completion and text: several examples in a row of max_length tokens, which do not see each other",
    )
    padding_free: bool = Field(
        False, description="of chat, completion and text: the examples of a batch behind each other in place of padding"
    )
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
    def _defaults_of_the_task(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        if content.get("task") == "summarization":
            return {"text": ("document",), "label": "summary", **content}
        if content.get("task") in SFT_COLUMNS:
            return {"max_length": _SFT_LENGTH, "test_split": None, **content}
        return content

    @property
    def test_parts(self) -> dict[str, str]:
        """Name of each part that is evaluated -> its file or split, the first one first; a single one is called test."""
        given = self.test if self.name is None else self.test_split
        if given is None:
            return {}
        return dict(given) if isinstance(given, Mapping) else {"test": str(given)}

    @property
    def is_sft(self) -> bool:
        """Whether TRL prepares the rows and trains on them."""
        return self.task in SFT_COLUMNS

    @property
    def target_length(self) -> int:
        """Most tokens of a target, behind those of `max_length`."""
        return 0 if self.is_sft else self.max_target_length or TEXT_TASKS[self.task].tokens

    @property
    def writes(self) -> bool:
        """Whether the answer is a text, in place of a class or a number."""
        return self.task not in ("classification", "regression")

    @model_validator(mode="after")
    def _fits_the_task(self) -> "DataSection":
        known = DataSection.model_fields

        def given(*keys: str) -> list[str]:
            return [key for key in keys if getattr(self, key) != known[key].default]

        if not self.writes and (keys := given("prompt", "max_target_length", "beams", "general_text")):
            raise ValueError(f"{keys[0]} is for tasks that write a text, {self.task} does not; leave it out")
        if self.is_sft and (keys := given("prompt", "max_target_length", "beams")):
            raise ValueError(f"{keys[0]} is for tasks with a prompt of ours, {self.task} has none; leave it out")
        if self.writes and self.task != "summarization" and (keys := given("text", "label")):
            raise ValueError(f"{keys[0]}: the columns of {self.task} are its own (docs/tasks.md); leave it out")
        if self.task != "chat" and (keys := given("assistant_only", "chat_template")):
            raise ValueError(f"{keys[0]} is for task chat, this is {self.task}; leave it out")
        if not self.is_sft and (keys := given("packing", "padding_free", "stream")):
            raise ValueError(f"{keys[0]} is for tasks {', '.join(SFT_COLUMNS)}, this is {self.task}; leave it out")
        if self.prompt is not None and "{" not in self.prompt.rpartition("}")[0]:
            raise ValueError('prompt names no column in braces, for example "{question} Answer:"')
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.name is None) == (self.train is None):
            raise ValueError("give either train and test (files) or name (hub), not both and not neither")
        if (self.test if self.name is None else self.test_split) is None and not self.is_sft:
            missing = "a test file is missing" if self.name is None else "test_split is missing"
            raise ValueError(f"{missing}: it is what the run is judged on")
        if self.stream:
            _check_stream(self)
        if self.name is not None and self.test is not None:
            raise ValueError("test is a file, and name a hub data set; give test_split in its place")
        for key, parts in (("test", self.test), ("test_split", self.test_split)):
            if isinstance(parts, Mapping):
                _check_names(key, list(parts))
        return self


def _check_stream(section: DataSection) -> None:
    """Refuse what needs all rows before the first is trained on."""
    if section.name is None:
        raise ValueError("stream is for hub data sets (name), a file is read whole; leave it out")
    if section.scoring is None:
        raise ValueError("stream needs scoring, a split of rows that ranks are scored on: none is held out of a stream")
    if isinstance(section.eval, float) or section.sample is not None:
        raise ValueError("stream: no share of a stream can be taken; give eval a split, and leave sample out")
    if section.padding_free:
        raise ValueError(
            "stream: TRL does not cut streamed rows without padding; give packing in place of padding_free"
        )


def _check_names(key: str, names: list[str]) -> None:
    """Refuse names of test parts that are taken, or that cannot name a folder."""
    if not names:
        raise ValueError(f"{key}: give at least one part")
    for place, name in enumerate(names):
        taken = name in ("train", EVAL, SCORING, GENERAL_TEXT) or (name == "test" and place)
        if taken or not re.fullmatch(r"[A-Za-z0-9_][\w -]*", name):
            raise ValueError(
                f"{key}: a part is called {name!r}; allowed: letters, digits, spaces, - and _, but for train, {EVAL}, "
                f"{SCORING}, {GENERAL_TEXT}, and test where it is not the first"
            )
        if name.startswith("checkpoint-"):
            raise ValueError(f"{key}: a part is called {name!r}, as checkpoints are; give it another name")
