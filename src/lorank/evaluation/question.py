"""What `lorank evaluate` is asked, checked without loading anything heavy."""

import math
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from lorank.artefact import check_file, check_new_folder
from lorank.errors import LorankError, OutputError, RecipeError
from lorank.findings import Findings
from lorank.models.pretrained import Pretrained
from lorank.recipe.recipe import Recipe
from lorank.runs.data_file import DataFile

DTYPES, QUANTIZATIONS = ("fp32", "bf16", "fp16"), ("4bit", "8bit")


@dataclass(frozen=True)
class Question:
    """What is evaluated, and on what.

    Attributes:
        model: folder of an adapter, or folder or hub name of a model.
        base: how the base model is loaded; without a name: the one that the adapter names. A recipe as data says it itself.
        tasks: of lm-eval: names, patterns of names, or YAML files.
        task_files: folder with task files of the user's own.
        fewshot: examples in front of each question; None: as the task says.
        chat_template: put lm-eval's prompts into the tokenizer's chat template.
        data: a recipe, whose test parts are evaluated, or a file of examples.
        generate: also write an answer for each row, and measure the metrics of the task.
        samples: prompts for which the texts that the model writes are shown.
        sample_tokens: most that is written for a sample.
        limit: examples of each task and of the data, the first ones; below 1: a share of them.
        batch_size: examples side by side.
        seed: of few-shot examples and of the choice of samples; None: lm-eval's own seeds.
        with_base: also evaluate the base model, with the adapter switched off.

    """

    model: str
    base: Pretrained = field(default_factory=lambda: Pretrained(""))
    tasks: tuple[str, ...] = ()
    task_files: Path | None = None
    fewshot: int | None = None
    chat_template: bool = False
    data: Recipe | DataFile | None = None
    generate: bool = False
    samples: int = 0
    sample_tokens: int = 64
    limit: float | None = None
    batch_size: int = 8
    seed: int | None = None
    with_base: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether the model is the folder of an adapter."""
        return (Path(self.model) / "adapter_config.json").is_file()

    def first(self, rows: int) -> int:
        """How many of the rows are evaluated."""
        if self.limit is None:
            return rows
        return min(rows, max(1, int(self.limit if self.limit >= 1 else self.limit * rows)))


def check_question(question: Question, output: Path | None = None, numbers: Path | None = None) -> None:
    """Refuse what cannot be, all of it at once.

    Args:
        question: what is asked.
        output: folder that is to be written; None: none.
        numbers: file that is to be written, or `-`; None: none.

    Raises:
        RecipeError: options that are missing, out of range or do not go together; no such folder; lm-eval is not installed.
        OutputError: what is to be written cannot be.

    """
    findings = Findings()
    with findings.check():
        if output is not None:
            check_new_folder(output)
    with findings.check():
        if numbers not in (None, Path("-")):
            check_file(numbers)
            if output is not None and numbers.absolute() == output.absolute():
                raise OutputError(f"--json and --output are both {output}; a file and a folder need two names")
    for wrong in _wrong(question):
        with findings.check():
            raise wrong
    findings.raise_all()


def _is_lost_folder(name: str) -> bool:
    """Whether a model is named as a folder is, and is not there. The hub has names of at most one separator (`org/name`)."""
    parts = name.replace(os.sep, "/").split("/")
    return (name[:1] in (".", "~") or len(parts) > 2 or "" in parts) and not Path(name).exists()


def _wrong(question: Question) -> list[LorankError]:
    asked, own = bool(question.tasks), question.data is not None
    problems = [
        (
            not asked and not own,
            "nothing is asked: give --tasks (tasks of lm-eval), --data (a file or a recipe), or both",
        ),
        (
            asked and find_spec("lm_eval") is None,
            "--tasks needs the package lm-eval: pip install 'lorank[evaluate]'; or leave it out",
        ),
        (
            question.with_base and not question.is_adapter,
            f"--with-base is for an adapter, and {question.model} has no adapter_config.json; leave it out",
        ),
        (
            _is_lost_folder(question.model),
            f"{question.model}: no such folder (looked in {Path.cwd()}); give the folder of an adapter or of a model, or the "
            "name of a model of the hub",
        ),
        (
            question.limit is not None and not 0 < question.limit < math.inf,
            f"--limit is {question.limit}; allowed: a number of examples from 1, or a share of them above 0 and below 1",
        ),
        (question.batch_size < 1, f"--batch-size is {question.batch_size}; give 1 or more"),
        (question.samples < 0 or question.sample_tokens < 1, "--samples and --sample-tokens: give 1 or more"),
        (question.fewshot is not None and question.fewshot < 0, "--num-fewshot: give 0 or more"),
        (
            question.base.dtype not in (None, *DTYPES),
            f"--dtype is {question.base.dtype!r}; allowed: {', '.join(DTYPES)}",
        ),
        (
            question.base.quantization not in (None, *QUANTIZATIONS),
            f"--quantization is {question.base.quantization!r}; allowed: {', '.join(QUANTIZATIONS)}",
        ),
        (
            question.task_files is not None and not question.task_files.is_dir(),
            f"--task-files: {question.task_files} is no folder; give the folder of your YAML task files",
        ),
    ]
    of_tasks = {
        "--task-files": question.task_files,
        "--num-fewshot": question.fewshot,
        "--apply-chat-template": question.chat_template or None,
    }
    of_data = {"--samples": question.samples or None, "--generate": question.generate or None}
    problems += [
        (value is not None and not asked, f"{key} is of --tasks; give it too") for key, value in of_tasks.items()
    ]
    problems += [(value is not None and not own, f"{key} is of --data; give it too") for key, value in of_data.items()]
    return [RecipeError(message) for wrong, message in problems if wrong]
