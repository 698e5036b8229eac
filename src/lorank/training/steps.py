"""How many optimizer steps a stage has."""

import math

from lorank.errors import RecipeError
from lorank.processes import processes
from lorank.recipe.sections import TrainingSection
from lorank.tasks.data import TaskData


def rows_of_an_epoch(section: TrainingSection, data: TaskData, examples: int) -> int:
    """Rows that a stage sees in an epoch of so many examples: packed ones count once; of a stream, all that it reads."""
    if not data.streams:
        return data.training_rows(examples)
    assert section.max_steps is not None, "a recipe with a stream has steps"
    return section.max_steps * section.batch_size * section.gradient_accumulation * processes().num_processes


def steps_per_epoch(section: TrainingSection, examples: int) -> int:
    """Optimizer steps in which a stage sees every example once."""
    micro_batches = math.ceil(examples / (section.batch_size * processes().num_processes))
    return math.ceil(micro_batches / section.gradient_accumulation)


def stage_steps(section: TrainingSection, examples: int) -> int:
    """Optimizer steps of a whole stage."""
    return section.max_steps or math.ceil(section.epochs * steps_per_epoch(section, examples))


def global_batch(section: TrainingSection) -> str | None:
    """How many examples an optimizer step of a stage has, in words; None where that is its batch size."""
    count, steps = processes().num_processes, section.gradient_accumulation
    if count * steps == 1:
        return None
    factors = [f"batch_size {section.batch_size}"]
    factors += [f"gradient_accumulation {steps}"] if steps > 1 else []
    factors += [f"{count} processes"] if count > 1 else []
    return f"{section.batch_size * steps * count:,} examples in an optimizer step: {' x '.join(factors)}"


def check_warmup(name: str, section: TrainingSection, examples: int) -> None:
    """Refuse a warm-up in steps that is as long as its stage: the learning rate would never be the one that was asked for.

    Args:
        name: of the stage's section in the recipe, for the message.
        section: of the stage.
        examples: that it trains on.

    Raises:
        RecipeError: it is.

    """
    steps = stage_steps(section, examples)
    if isinstance(section.warmup, int) and 0 < steps <= section.warmup:
        raise RecipeError(
            f"{name}.warmup is {section.warmup:,} steps, the whole stage has {steps:,}; lower it, give a share of the stage "
            "(below 1), or train longer"
        )
