"""Everything that can be checked before anything is trained or written, with all findings at once."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from peft import TaskType
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from lorank.errors import LorankWarning, RecipeError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.methods.registry import FULL
from lorank.models.loading import (
    check_classifier_dropout,
    config_of,
    head_modules,
    load_tokenizer,
    task_type_of,
    without_weights,
)
from lorank.models.quantization import check_full_training, check_quantization
from lorank.models.trained_whole import trained_whole
from lorank.processes import processes
from lorank.recipe.recipe import Recipe
from lorank.runs.checks import check_model
from lorank.runs.choices import allocation_stage
from lorank.runs.defaults import fit_to_data, fit_to_model, with_dtype
from lorank.runs.recipe_values import pretrained_of, stage_settings_of
from lorank.targets import Target
from lorank.tasks.data import TaskData, load_task_data
from lorank.tasks.encoding import check_texts
from lorank.tasks.general_text import check_general_text
from lorank.tasks.sft_tokens import assistant_only, set_chat_template, with_tokens
from lorank.tasks.text_data import ends_texts
from lorank.tasks.tokenizer_checks import check_tokens
from lorank.training.full_stage import check_full_section
from lorank.training.prepared import Prepared
from lorank.training.steps import check_warmup, global_batch, rows_of_an_epoch


def prepare(
    recipe: Recipe, methods: Sequence[str], console: Console | None = None, data: TaskData | None = None
) -> tuple[Recipe, Prepared]:
    """Check a recipe for these methods: model, options, budget, data, tokens, and whether the stages are long enough.

    Args:
        recipe: as it was read.
        methods: that are to run, full fine-tuning among them.
        console: for a line about each default that is changed.
        data: the recipe's, where it is loaded already.

    Returns:
        The recipe with defaults that fit model and data, and what its stages need.

    Raises:
        LorankError: a single finding as it is; several as one `SeveralFindings`.

    """
    findings, base = Findings(), pretrained_of(recipe)
    with_ranks = [name for name in methods if name != FULL]
    model, task_type, tokenizer, checked = None, None, None, None

    def say(line: str) -> None:
        if console is not None and processes().is_main_process:
            console.print(f"note: {line}", highlight=False, soft_wrap=True)

    with findings.check():
        task_type = task_type_of(base, writes=recipe.data.writes)
        model = without_weights(base, task_type)
        recipe = fit_to_model(with_dtype(recipe, say), model, task_type, say)
        base = pretrained_of(recipe)
    if model is not None:
        with findings.check():
            check_quantization(base, config_of(base))
    if FULL in methods:
        with findings.check():
            check_full_training(base)
        with findings.check():
            check_full_section(recipe.of(FULL).train)
    if model is not None and task_type == TaskType.SEQ_CLS:
        with findings.check():
            check_classifier_dropout(base)
    for method in with_ranks if model is not None else ():
        with findings.check():
            _check_second_derivatives(recipe.of(method))
    with findings.check():
        checked = check_model(recipe, with_ranks)
        if recipe.data.is_sft and model is not None:
            _check_no_head(model, checked[0])
    with findings.check():
        tokenizer = load_tokenizer(base)
        set_chat_template(tokenizer, recipe.data)
    if model is not None and tokenizer is not None:
        with findings.check():
            recipe = _sft_checked(recipe, tokenizer, task_type, say)
    encoded: TaskData | None = None
    with findings.check():
        data = data or load_task_data(recipe.data)
        if tokenizer is not None:
            data = encoded = with_tokens(data, tokenizer, recipe.data)
            if recipe.data.packing and not data.streams:
                examples = len(data.train)
                say(f"data.packing: {examples:,} training examples fit into {data.training_rows(examples):,} rows")
    if data is not None:
        for part, sum_ in data.hashes.items():
            if part != "train" and sum_ == data.hashes.get("train"):
                say(f"the {part} part is the training part: its results say nothing about other examples")
        with findings.check():
            recipe = fit_to_data(recipe, data, tuple(with_ranks), say)
        _check_warmup(recipe, methods, data, findings)
        for method in with_ranks:
            if METHODS[method].allocates_in_training:
                with findings.check():
                    allocation_stage(recipe.of(method), data).check_schedule()
    if encoded is not None and tokenizer is not None and task_type is not None:
        with findings.check():
            check_texts(encoded, tokenizer, recipe.data, task_type)
            check_general_text(tokenizer, recipe.data, task_type)
            if model is not None:
                check_tokens(encoded, tokenizer, recipe.data, task_type, base, model)
    findings.raise_all()
    assert checked is not None
    assert data is not None
    assert tokenizer is not None
    assert task_type is not None
    assert model is not None
    targets, provenance = checked
    whole = trained_whole(model, base.modules_to_save, head_modules(model) if task_type == TaskType.SEQ_CLS else ())
    if whole.names:
        say(
            f"model.modules_to_save: {', '.join(whole.names)} train whole, {whole.parameters:,} parameters that are not in "
            f"the budget{'; the output layer shares the weight, and follows' if whole.tied else ''}"
        )
    stages = {"train": recipe.train} | ({"search": recipe.deciding_stage} if recipe.has_search else {})
    told = {name: line for name, stage in stages.items() if (line := global_batch(stage)) is not None}
    for name, line in told.items():
        if name == "train" or line != told.get("train"):
            say(f"{name}: {line}")
    if base.new_tokens:
        say(
            f"model.new_tokens: {len(base.new_tokens)} tokens are added, {len(tokenizer):,} in all; their rows of the embeddings "
            "train beside the adapters and are not in the budget"
        )
    return recipe, Prepared(
        base=base,
        task_type=task_type,
        tokenizer=tokenizer,
        section=recipe.data,
        data=data,
        metrics=recipe.metrics,
        targets=targets,
        settings=stage_settings_of(recipe),
        provenance=provenance,
    )


def _sft_checked(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, task_type: TaskType | None, say: Callable[[str], None]
) -> Recipe:
    """The recipe with what its loss is of; says so.

    Raises:
        RecipeError: a model that TRL's SFTTrainer does not train, or one whose chat template does not mark what is asked for.

    """
    if not recipe.data.is_sft:
        return recipe
    if task_type != TaskType.CAUSAL_LM:
        raise RecipeError(
            f"data.task {recipe.data.task} is for decoders, and {recipe.model.name!r} is an encoder-decoder; give summarization, "
            "or instruction"
        )
    if recipe.data.task != "chat":
        if ends_texts(tokenizer):
            warnings.warn(
                "the tokenizer of this model ends each text itself, and TRL ends it too: the model is taught to write the end "
                "twice. Load it with add_eos_token=false (in its tokenizer_config.json)",
                LorankWarning,
                stacklevel=2,
            )
        say(f"the loss is that of {'the completions' if recipe.data.task == 'completion' else 'all tokens'}")
        return recipe
    only = assistant_only(tokenizer, recipe.data)
    why = "" if recipe.data.assistant_only is False else ", as its chat template does not mark the assistant's"
    say("the loss is that of the assistant's tokens" if only else f"the loss is that of all tokens{why}")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"assistant_only": only})})


def _check_no_head(model: Any, targets: Sequence[Target]) -> None:
    """TRL multiplies by the weights of the language model's head itself: an adapter there would never be trained."""
    head = model.get_output_embeddings()
    for target in targets:
        if model.get_submodule(target.name) is head:
            raise RecipeError(
                f"target_modules: {target.name} is the language model's head, and TRL's loss passes by an adapter there; "
                "leave it out"
            )


def _check_second_derivatives(recipe: Recipe) -> None:
    if getattr(recipe.measure, "estimator", None) == "hutchinson" and recipe.model.dtype != "fp32":
        raise RecipeError(
            f"measure.estimator hutchinson of {recipe.method} takes second derivatives, which are noise in {recipe.model.dtype}; "
            "give model.dtype=fp32, or another estimator"
        )


def _check_warmup(recipe: Recipe, methods: Sequence[str], data: TaskData, findings: Findings) -> None:
    """Whether the stages that are judged are longer than their warm-up; those that decide ranks have a check of their own."""
    checked = [recipe.train]
    with findings.check():
        check_warmup("train", recipe.train, rows_of_an_epoch(recipe.train, data, len(data.train)))
    for method in methods:
        own = recipe.of(method).train
        if own not in checked:
            checked.append(own)
            with findings.check():
                check_warmup(f"baselines.{method}.train", own, rows_of_an_epoch(own, data, len(data.train)))
