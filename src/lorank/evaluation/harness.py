"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness), run by its own evaluator on a model that is loaded already."""

import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lorank.errors import DataError, RecipeError, TrainingError, one_line
from lorank.evaluation.question import Question
from lorank.validation import nearest

# What a result has beside its metrics.
_NOT_METRICS = ("name", "alias", "sample_len", " ")


def load_tasks(question: Question) -> Mapping[str, Any]:
    """lm-eval's tasks by name, with their data sets, before a model is loaded.

    lm-eval's own list, which takes a while to read, is read only where a name is not one of the user's own tasks, or is a group,
    which may have tasks of that list.

    Args:
        question: `tasks`, `task_files` and `seed` of it.

    Returns:
        `tasks`, `groups` and `group_map`, as lm-eval's `TaskManager.load` gives them.

    Raises:
        RecipeError: names that no task has, all of them.
        DataError: a task whose file or data set cannot be read.

    """
    from lm_eval.tasks import TaskManager

    _set_seeds(question.seed)
    folder = None if question.task_files is None else str(question.task_files)
    with _quiet():
        manager = TaskManager(include_path=folder, include_defaults=False)
        found, unknown = _named(question.tasks, manager.all_tasks)
        if unknown or any(name in manager.all_groups for name in found):
            manager = TaskManager(include_path=folder)
            found, unknown = _named(question.tasks, manager.all_tasks)
    if unknown:
        known = manager.all_tasks
        said = [f"{name!r}{nearest(name, known)}" for name in unknown]
        raise RecipeError(
            f"--tasks: lm-eval has no {', '.join(said)}; give a name of lm-eval's list, a YAML file, or the folder of your own "
            "task files as --task-files"
        )
    try:
        with _quiet():
            return manager.load(found)
    except Exception as error:  # a task file may hold code, and data sets raise many kinds
        raise DataError(
            f"--tasks {','.join(question.tasks)}: a task or its data set cannot be loaded ({type(error).__name__}: "
            f"{one_line(error)}); mend its file, or see that its data set can be reached"
        ) from None


def check_ends(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a decoder's tokenizer that adds a token behind each text: lm-eval takes what is behind a prompt for the answer.

    Raises:
        RecipeError: it adds one.

    """
    with_marks, alone = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if with_marks[-1:] != alone[-1:]:
        raise RecipeError(
            f"--tasks: the tokenizer of {name} ends every text with {tokenizer.convert_ids_to_tokens(with_marks[-1])!r}, which "
            "lm-eval would score in place of the answer; set add_eos_token in its tokenizer_config.json to false"
        )


def run_tasks(
    tasks: Mapping[str, Any], model: Any, tokenizer: PreTrainedTokenizerBase, question: Question
) -> dict[str, dict[str, Any]]:
    """Evaluate a model on tasks of lm-eval, by its own evaluator.

    Args:
        tasks: of `load_tasks`.
        model: that writes, in evaluation mode; with or without an adapter.
        tokenizer: of the model.
        question: few-shot examples, limit, batch size, seed, chat template.

    Returns:
        Task or group -> `metrics` (name -> `value` and `stderr`, None where lm-eval has none), `fewshot`, `examples`, `version`.

    Raises:
        TrainingError: a task fails.

    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    seed = _set_seeds(question.seed)
    for task in tasks["tasks"].values():
        # As lm-eval's command: a task that says 0 itself keeps it.
        own = task.get_config("num_fewshot")
        if own != 0:
            task.set_config(key="num_fewshot", value=(own or 0) if question.fewshot is None else question.fewshot)
        task.set_fewshot_seed(seed=seed)
    try:
        with _quiet():
            results = lm_eval.evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=question.batch_size),
                task_dict=tasks,
                limit=_limit(question.limit),
                log_samples=False,
                apply_chat_template=question.chat_template,
                fewshot_as_multiturn=question.chat_template,
            )
    except Exception as error:  # of code in task files too
        raise TrainingError(
            f"--tasks {','.join(question.tasks)}: lm-eval cannot evaluate them on this model ({type(error).__name__}: "
            f"{one_line(error)})"
        ) from None
    return {name: _result(name, values, results) for name, values in results["results"].items()}


def _limit(limit: float | None) -> float | int | None:
    """lm-eval takes whole numbers for numbers of examples."""
    return None if limit is None else limit if limit < 1 else int(limit)


def _result(name: str, values: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if key in _NOT_METRICS or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        called = metric if chosen in ("", "none") else f"{metric} ({chosen})"
        metrics[called] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
    counted = results.get("n-samples", {}).get(name) or {}
    return {
        "metrics": metrics,
        "fewshot": results.get("n-shot", {}).get(name),
        "examples": counted.get("effective", values.get("sample_len")),
        "version": results.get("versions", {}).get(name),
    }


def _named(asked: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tasks and paths of their files, each once, and what is neither."""
    from lm_eval.utils import pattern_match

    found, unknown = dict[str, None](), []
    for name in asked:
        matching = pattern_match([name], known)
        if not matching and Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
            matching = [name]
        found |= dict.fromkeys(matching)
        unknown += [] if matching else [name]
    return list(found), unknown


def _set_seeds(seed: int | None) -> int:
    """Set every source of random numbers, as lm-eval's command does, and give the seed of few-shot examples."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    other = int(DEFAULT_OTHER_SEED) if seed is None else seed
    random.seed(DEFAULT_RANDOM_SEED if seed is None else seed)
    np.random.seed(other)
    torch.manual_seed(other)
    return other


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's notes, and without bars where there is no terminal; what it raises is raised."""
    logger = logging.getLogger("lm_eval")
    level, hidden = logger.level, nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO())
    logger.setLevel(logging.ERROR)
    try:
        with hidden:
            yield
    finally:
        logger.setLevel(level)
