"""The batches that a stage's Trainer would see, for trainings that have no Trainer."""

from collections.abc import Iterator

from datasets import Dataset

from lorank.recipe.sections import TrainingSection
from lorank.scoring.batches import Batch
from lorank.tasks.encoding import collator
from lorank.training.prepared import Prepared
from lorank.training.trainer import SeededOrder


class EpochBatches:
    """Padded micro-batches of an epoch; iterated again, those of the next epoch. The order is that of a run with this seed.

    Args:
        prepared: tokenizer and settings.
        section: says how large a batch is.
        rows: of `Prepared.tokenize`.
        seed: of the order.

    """

    def __init__(self, prepared: Prepared, section: TrainingSection, rows: Dataset, seed: int) -> None:
        self.size, self.rows = section.batch_size, rows.remove_columns("length")
        whole, grouped = self.size * section.gradient_accumulation, prepared.settings.group_by_length
        self.order = SeededOrder(rows["length"][:], whole, seed, group_by_length=grouped)
        self.collate = collator(prepared.tokenizer, prepared.task_type)
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        self.order.epoch, self.epoch = self.epoch, self.epoch + 1
        indices = list(self.order)
        for start in range(0, len(indices), self.size):
            yield self.collate([self.rows[row] for row in indices[start : start + self.size]])
