"""Full fine-tuning: the baseline that trains every weight, on the data, order and steps of stage 2."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase, set_seed

from lorank.models.loading import load_task_model
from lorank.recipe.recipe import Recipe
from lorank.tasks.data import TaskData
from lorank.tasks.encoding import tokenize
from lorank.training.stage import train_stage
from lorank.training.stage2 import measured


@dataclass(frozen=True)
class FullResult:
    """What full fine-tuning came to.

    Attributes:
        metrics: name -> value on the test part; None where it is not defined.
        loss: mean task loss on the test part.
        trained_parameters: all of the model but its head.
        steps: optimizer steps.
        seconds: training time.

    """

    metrics: dict[str, float | None]
    loss: float | None
    trained_parameters: int
    steps: int
    seconds: float


def train_full(
    recipe: Recipe, data: TaskData, tokenizer: PreTrainedTokenizerBase, directory: Path, console: Console
) -> FullResult:
    """Train every weight in fp32 by the recipe's `stage2`, or continue; and evaluate on the test part.

    The learning rate is the recipe's; one that suits adapters is far too high here.

    Raises:
        TrainingError: a loss that is not finite.

    """
    set_seed(recipe.seed)
    task = load_task_model(recipe, data.label_names)
    model: Any = task.model
    progress = train_stage(
        name="full fine-tuning",
        recipe=recipe,
        section=recipe.stage2,
        directory=directory / "stage2",
        model=model,
        rows=tokenize(data.train, tokenizer, recipe),
        tokenizer=tokenizer,
        console=console,
    )
    heads = {id(p) for name in task.heads for p in model.get_submodule(name).parameters()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in heads)
    metrics, loss = measured(recipe, data, model, tokenizer, directory / "stage2")
    return FullResult(metrics, loss, trained, progress.step, progress.seconds)
