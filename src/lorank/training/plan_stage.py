"""The training of a plan: a plain PEFT LoRA of its ranks, from a fresh start, on the whole training set; and its evaluation."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from lorank.adapter.effect import warn_without_effect
from lorank.artefact import settle_folder, sync
from lorank.errors import LorankWarning, PlanError
from lorank.experts import adapted_name
from lorank.in_training.adapter_audit import audit_saves
from lorank.models.label_names import label_names_of, write_label_names
from lorank.models.task_model import experts_patterns_are_known
from lorank.module_names import is_adapter_tensor
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.sections import TrainingSection
from lorank.serving.adapter_config import WEIGHTS
from lorank.training.adapter_sums import sums_of
from lorank.training.checkpoints import latest_checkpoint, read_progress, stage_folder
from lorank.training.prepared import Prepared
from lorank.training.stage import train_stage


@dataclass(frozen=True)
class Evaluation:
    """How a saved adapter did on the test part.

    Attributes:
        metrics: name -> value; None where it is not defined (a correlation of constant predictions).
        loss: mean task loss.
        adapter_parameters: counted in the adapter's file, heads left out.
        steps: optimizer steps of the stage that trained it.
        seconds: training time of that stage.
        more: name of each further test part -> its `metrics` and `loss`.
        skipped_steps: of its steps, those that `on_nonfinite: skip` left out.
        adapter_sha256: of the file of its weights; None in results of earlier versions.
        adapter_files: file of the adapter -> its SHA-256, the weights among them; empty in results of earlier versions.

    """

    metrics: dict[str, float | None]
    loss: float | None
    adapter_parameters: int
    steps: int
    seconds: float
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_steps: tuple[int, ...] = ()
    adapter_sha256: str | None = None
    adapter_files: dict[str, str] = field(default_factory=dict)


def scaled_plan(plan: RankPlan, alpha: float, scale_by: str) -> RankPlan:
    """The plan with the scale of reading A13.

    With `alpha = scale · r_init`: `initial` scales every module by `alpha / r_init`, as the plan has it; `target` by alpha over
    the mean rank of the plan, `active` by alpha over the module's own rank, and `rslora` over its square root.
    """
    if scale_by == "target":
        return replace(plan, scale=alpha * len(plan.ranks) / plan.total_rank)
    return plan if scale_by == "initial" else replace(plan, alpha=alpha, rslora=scale_by == "rslora")


def train_plan(
    prepared: Prepared,
    section: TrainingSection,
    plan: RankPlan,
    directory: Path,
    console: Console,
    name: str,
    start: Callable[[PeftModel], None] | None = None,
) -> None:
    """Train the plan's adapter, or continue, and save it under `directory/adapter`, whole or not at all.

    `start` sets the fresh adapter to where training begins, if that is not PEFT's own start.

    Raises:
        PlanError: PEFT did not adapt exactly the plan's modules.
        TrainingError: a loss that is not finite.

    """
    task = prepared.load_model()
    with warnings.catch_warnings():
        # What it says of new tokens is said before a run begins.
        warnings.filterwarnings("ignore", "trainable_token_indices trains", LorankWarning)
        config = plan.lora_config(lora_dropout=prepared.settings.lora_dropout, **task.lora_options)
    model = task.adapted(config)
    _check_ranks(model, plan)
    if start is not None:
        start(model)
    train_stage(
        name=name,
        prepared=prepared,
        section=section,
        directory=stage_folder(directory, "train", "stage2"),
        model=model,
        rows=prepared.stage_rows(prepared.data.train),
        console=console,
        evaluated=True,
    )
    audit_saves(model, plan)
    save_adapter(model, directory, tokenizer_beside(prepared))


def tokenizer_beside(prepared: Prepared) -> PreTrainedTokenizerBase | None:
    """What is saved beside an adapter: a tokenizer with new tokens, or, of chat, completion and text, with its chat template."""
    return prepared.tokenizer if prepared.section.is_sft or prepared.base.new_tokens else None


def save_adapter(model: PeftModel, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Save the adapter under `directory/adapter`, whole or not at all; every process waits for the first, which does it.

    Names of labels are saved beside it, and the tokenizer where it is given. Of embeddings that were resized for it the file has
    the rows that trained, and not the whole tables. An adapter that is there stays: only its plan was gone.

    Warns:
        LorankWarning: the adapter does nothing.

    """
    if processes().is_main_process and not (directory / "adapter" / "adapter_config.json").is_file():
        warn_without_effect(model, str(directory / "adapter"))
        partial = directory / ".adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(str(partial), **({} if tokenizer is None else {"save_embedding_layers": False}))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(partial))
        write_label_names(partial, label_names_of(model))
        settle_folder(partial)
        partial.rename(directory / "adapter")
        sync(directory)
    processes().wait_for_everyone()


def evaluate_adapter(prepared: Prepared, plan: RankPlan, directory: Path, stage: Path) -> Evaluation:
    """Load `directory/adapter` through plain PEFT, as its user will, and evaluate it on the test part.

    Steps and seconds are those of the folder `stage`, which trained it.

    Raises:
        PlanError: the file does not hold the parameters that the plan spends.

    """
    parameters = adapter_parameters(directory / "adapter")
    if parameters != plan.spent:
        raise PlanError(
            f"{directory / 'adapter'} holds {parameters:,} adapter parameters, the plan spends {plan.spent:,}"
        )
    metrics, loss, more = evaluate_saved(prepared, directory / "adapter", stage)
    checkpoint = latest_checkpoint(stage)
    assert checkpoint is not None, "a stage leaves a checkpoint when it ends"
    progress = read_progress(checkpoint)
    files = sums_of(directory / "adapter")
    return Evaluation(
        metrics, loss, parameters, progress.step, progress.seconds, more, progress.skipped, files[WEIGHTS], files
    )


def evaluate_saved(
    prepared: Prepared, adapter: Path, directory: Path
) -> tuple[dict[str, float | None], float | None, dict[str, dict[str, Any]]]:
    """Metrics and mean loss of an adapter that plain PEFT loads, and on further test parts; Trainer works in `directory`."""
    with experts_patterns_are_known():
        model = PeftModel.from_pretrained(prepared.load_model().model, str(adapter))
    metrics, loss = prepared.evaluate(model, directory)
    return metrics, loss, prepared.evaluate_more(model, directory)


def adapter_parameters(directory: Path) -> int:
    """Count the adapter parameters in a saved PEFT adapter: every `lora_` tensor, no head."""
    with safe_open(directory / WEIGHTS, framework="numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if is_adapter_tensor(key)]  # noqa: SIM118
    return sum(int(np.prod(shape)) for shape in shapes)


def _check_ranks(model: PeftModel, plan: RankPlan) -> None:
    layers = ((name, part) for name, part in model.get_base_model().named_modules() if isinstance(part, LoraLayer))
    adapted = {adapted_name(name, layer): layer.r["default"] for name, layer in layers}
    wanted = {name: rank for name, rank in plan.ranks.items() if rank > 0}
    if adapted != wanted:
        name = next(n for n in {**wanted, **adapted} if adapted.get(n) != wanted.get(n))
        raise PlanError(f"PEFT gave {name!r} rank {adapted.get(name, 0)} where the plan says {wanted.get(name, 0)}")
