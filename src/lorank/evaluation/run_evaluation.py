"""An adapter or a model evaluated: checks first, then one loading, then everything that was asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import TaskType
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lorank.artefact import new_folder, read_plain_text, versions, write_json
from lorank.errors import AdapterError, RecipeError, one_line
from lorank.evaluation.harness import check_ends, load_tasks, run_tasks
from lorank.evaluation.own_data import OwnData, evaluate_part, prepare_own_data
from lorank.evaluation.question import Question, check_question
from lorank.evaluation.samples import sample_prompts, write_samples
from lorank.findings import Findings
from lorank.models.base_dtype import dtype_of_checkpoint
from lorank.models.loading import config_of, load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import check_quantization
from lorank.models.saved_model import SavedModel, read_saved_model
from lorank.recipe.recipe import Recipe
from lorank.runs.recipe_values import pretrained_of
from lorank.untrusted.chat_templates import check_chat_template


@dataclass(frozen=True)
class _Checked:
    """What is known when everything is checked, and no weights are loaded."""

    model: SavedModel
    base: Pretrained
    tokenizer: PreTrainedTokenizerBase
    tasks: Mapping[str, Any] | None
    own: OwnData | None


def run_evaluation(question: Question, output: Path | None = None, console: Console | None = None) -> dict[str, Any]:
    """Evaluate an adapter or a model on tasks of lm-eval and on own data, and let it write for a few prompts.

    With `question.with_base` the base model's numbers are those of the same model with its adapter switched off.

    Args:
        question: what is asked.
        output: a new folder for `results.json`, and in it a folder for each model with `losses.npy` (and
            `predictions.jsonl`), in which further test parts have folders of their own. None: nothing is written.
        console: for lines of progress.

    Returns:
        JSON values: which model, how it was loaded, `results` (of `adapter` or `model`, and of `base`: `tasks` and `data`), and
        `samples`.

    Raises:
        LorankError: whatever is wrong with options, tasks, data or model, all that is known before weights are loaded at once.

    """
    console = console or Console(quiet=True)
    check_question(question, output)
    with new_folder(output) if output is not None else _temporary() as folder:
        checked = _check(question, console)
        console.print(f"loading {question.model}", highlight=False)
        names = checked.own.prepared.data.label_names if checked.own else checked.model.label_names
        model = checked.model.load(checked.base, names)
        found = _evaluate(question, checked, model, folder, console)
        if output is not None:
            write_json(folder / "results.json", found)
    return found


@contextmanager
def _temporary() -> Iterator[Path]:
    with TemporaryDirectory(prefix="lorank-evaluate-") as folder:
        yield Path(folder)


def _check(question: Question, console: Console) -> _Checked:
    findings = Findings()
    model, tasks, own, tokenizer = None, None, None, None
    with findings.check():
        model = read_saved_model(question.model, _pretrained(question))
        if question.tasks and not model.writes:
            raise RecipeError(
                f"--tasks: {question.model} classifies texts, and tasks of lm-eval are for models that write; give --data"
            )
        if question.with_base and not model.writes:
            raise RecipeError(
                f"--with-base: {question.model} classifies texts, and its base model has no trained head; leave it out"
            )
    with findings.check():
        if question.tasks and (model is None or model.writes):
            console.print("reading lm-eval's tasks", highlight=False)
            tasks = load_tasks(question)
    if model is not None:
        with findings.check():
            if question.data is not None:
                own = prepare_own_data(model, question, console)
            else:
                check_quantization(model.base, config_of(model.base))
        with findings.check():
            tokenizer = own.prepared.tokenizer if own else load_tokenizer(model.base)
            if question.tasks and model.task_type == TaskType.CAUSAL_LM:
                check_ends(tokenizer, model.base.name)
            _set_chat_template(tokenizer, model, question)
    findings.raise_all()
    assert model is not None
    assert tokenizer is not None
    return _Checked(model, own.prepared.base if own else model.base, tokenizer, tasks, own)


def _set_chat_template(tokenizer: Any, model: SavedModel, question: Question) -> None:
    """That of the adapter, where it has one."""
    if model.chat_template is not None:
        try:
            tokenizer.chat_template = read_plain_text(model.chat_template)
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{model.chat_template} cannot be read ({one_line(error)}); give a Jinja file, or take it away"
            ) from None
    if not question.chat_template:
        return
    if not tokenizer.chat_template:
        raise RecipeError(
            f"--apply-chat-template: the tokenizer of {model.base.name} has no chat template; leave it out"
        )
    try:
        check_chat_template(tokenizer.chat_template, tokenizer.special_tokens_map)
    except ValueError as error:
        raise RecipeError(f"--apply-chat-template: {error}") from None


def _pretrained(question: Question) -> Pretrained:
    """How the base model is loaded: as a recipe says, or the options."""
    if not isinstance(question.data, Recipe):
        return question.base
    base = pretrained_of(question.data)
    return base if question.is_adapter else replace(base, name="", revision=None)


def _evaluate(question: Question, checked: _Checked, model: Any, folder: Path, console: Console) -> dict[str, Any]:
    """Everything that is asked, of the model and of its base."""
    own, adapted = checked.own, checked.model.adapter is not None
    prompts = sample_prompts(own, question.samples, question.seed or 0) if own and question.samples else None
    written: list[dict[str, str]] = [{} for _ in prompts.ids] if prompts else []
    results: dict[str, dict[str, Any]] = {}
    for name in ("adapter" if adapted else "model", *(["base"] if question.with_base else [])):
        with model.disable_adapter() if name == "base" else nullcontext():
            results[name] = {}
            if checked.tasks is not None:
                console.print(f"{name}: tasks {', '.join(checked.tasks['tasks'])}", highlight=False, markup=False)
                results[name]["tasks"] = run_tasks(checked.tasks, model, checked.tokenizer, question)
            if own:
                results[name]["data"] = {}
                for part, rows in own.parts.items():
                    console.print(f"{name}: {len(rows):,} rows of {part}", highlight=False, markup=False)
                    directory = folder / name / ("" if len(own.parts) == 1 or part == "test" else part)
                    results[name]["data"][part] = evaluate_part(
                        model, own, part, generate=question.generate, directory=directory
                    )
            if own and prompts:
                texts = write_samples(model, own, prompts, tokens=question.sample_tokens, directory=folder / name)
                for sample, text in zip(written, texts, strict=True):
                    sample[name] = text
    found = {**_described(question, checked), "results": results}
    if prompts:
        rows = zip(prompts.texts, prompts.targets, written, strict=True)
        found["samples"] = [{"prompt": prompt, "target": target, "written": texts} for prompt, target, texts in rows]
    return found


def _described(question: Question, checked: _Checked) -> dict[str, Any]:
    base = checked.base
    evaluator = {"lm_eval": version("lm_eval")} if checked.tasks is not None else {}
    classifier = checked.model.task_type == TaskType.SEQ_CLS
    return {
        "model": question.model,
        "base": base.name if checked.model.adapter is not None else None,
        "revision": base.revision,
        "dtype": base.dtype or dtype_of_checkpoint(config_of(base)),
        "quantization": base.quantization,
        "labels": list(checked.model.label_names) if classifier else None,
        "limit": question.limit,
        "seed": question.seed,
        "versions": versions() | evaluator,
    }
