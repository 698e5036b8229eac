"""How many optimizer steps a stage has."""

import math

from lorank.processes import processes
from lorank.recipe.sections import TrainingSection


def steps_per_epoch(section: TrainingSection, examples: int) -> int:
    """Optimizer steps in which a stage sees every example once."""
    micro_batches = math.ceil(examples / (section.batch_size * processes().num_processes))
    return math.ceil(micro_batches / section.gradient_accumulation)


def stage_steps(section: TrainingSection, examples: int) -> int:
    """Optimizer steps of a whole stage."""
    return section.max_steps or math.ceil(section.epochs * steps_per_epoch(section, examples))
