"""Full fine-tuning: the baseline that trains every weight, on the data, order and steps that a plan is trained with."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.errors import RecipeError
from lorank.models.quantization import check_full_training
from lorank.recipe.sections import TrainingSection
from lorank.training.checkpoints import stage_folder
from lorank.training.prepared import Prepared
from lorank.training.stage import train_stage


@dataclass(frozen=True)
class FullResult:
    """What full fine-tuning came to.

    Attributes:
        metrics: name -> value on the test part; None where it is not defined.
        loss: mean task loss on the test part.
        trained_parameters: all of the model but its head.
        steps: optimizer steps.
        seconds: training time.
        more: name of each further test part -> its `metrics` and `loss`.
        skipped_steps: of its steps, those that `on_nonfinite: skip` left out.

    """

    metrics: dict[str, float | None]
    loss: float | None
    trained_parameters: int
    steps: int
    seconds: float
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped_steps: tuple[int, ...] = ()


def check_full_section(section: TrainingSection) -> None:
    """Refuse what is about A and B only.

    Raises:
        RecipeError: LoRA+.

    """
    if section.loraplus_lr_ratio is not None:
        raise RecipeError(
            "loraplus_lr_ratio is about A and B, which full fine-tuning does not have; give full a train section with "
            "loraplus_lr_ratio=null"
        )


def train_full(prepared: Prepared, section: TrainingSection, directory: Path, console: Console) -> FullResult:
    """Train every weight in fp32, or continue; and evaluate on all test parts. `model.dtype` is for bases that are frozen.

    Args:
        prepared: the run's.
        section: options of the stage; a learning rate that suits adapters is far too high here.
        directory: where it works.
        console: for lines of progress.

    Raises:
        RecipeError: the base model is quantised, or LoRA+.
        TrainingError: a loss that is not finite.

    """
    check_full_training(prepared.base)
    check_full_section(section)
    prepared = replace(prepared, base=replace(prepared.base, dtype="fp32", modules_to_save=None))
    task, folder = prepared.load_model(), stage_folder(directory, "train", "stage2")
    model: Any = task.model
    heads = {id(p) for name in task.heads for p in model.get_submodule(name).parameters()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in heads)
    console.print(f"full fine-tuning: training {trained:,} parameters beside the head", highlight=False)
    progress = train_stage(
        name="full fine-tuning",
        prepared=prepared,
        section=section,
        directory=folder,
        model=model,
        rows=prepared.stage_rows(prepared.data.train),
        console=console,
        evaluated=True,
    )
    metrics, loss = prepared.evaluate(model, folder)
    more = prepared.evaluate_more(model, folder)
    return FullResult(metrics, loss, trained, progress.step, progress.seconds, more, progress.skipped)
