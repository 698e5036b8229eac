"""From what a user gives as `scoring_data` to numbered batches, as the Trainer makes its own."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from lorank.engine.options import ScoringSetChoices
from lorank.engine.overlap import warn_of_overlap
from lorank.engine.scoring_batches import LoaderBatches, RowBatches, ScoringBatches
from lorank.errors import DataError, TrainingError
from lorank.validation import nearest


def scoring_batches(
    data: Any, options: ScoringSetChoices, args: TrainingArguments, train_dataloader: Any, trainer: Any = None
) -> ScoringBatches:
    """The scoring set in batches; warns where it overlaps the training set.

    Args:
        data: rows, the name of an entry of the Trainer's `eval_dataset`, or a DataLoader; None is the training data.
        options: `source` and `scoring_batch_size`.
        args: of the Trainer.
        train_dataloader: whose collator makes batches of rows.
        trainer: where it is known; a name needs it.

    Raises:
        DataError: rows that the collator cannot take, too few, or a loader without batches.
        TrainingError: a name without a Trainer, or one that its `eval_dataset` does not have.

    """
    loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
    training = getattr(loader, "dataset", None)
    if isinstance(data, str):
        data = _named_loader(data, trainer)
    rows: Any = training if options.measure.source == "training" else data
    found: ScoringBatches
    if isinstance(rows, Mapping) or hasattr(rows, "iloc"):
        raise DataError(
            f"scoring_data is {type(rows).__name__}; give rows (a Dataset, a list of mappings), or a DataLoader"
        )
    if hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
        found = _row_batches(rows, training, loader, options, args)
    elif options.measure.source == "training":
        raise DataError("source='training' needs training data with a length; give scoring_data, rows or a DataLoader")
    else:
        found = LoaderBatches(rows, args.seed)
    if options.measure.source == "held-out":
        warn_of_overlap(found.rows, training)
    return found


def check_name(name: str, trainer: Any) -> None:
    """Whether the Trainer's `eval_dataset` has an entry of this name.

    Raises:
        TrainingError: it has not.

    """
    entries = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}
    if name not in entries:
        known = ", ".join(entries) or f"none: give eval_dataset={{{name!r}: rows}}"
        raise TrainingError(f"eval_dataset has no entry {name!r}{nearest(name, entries)}; its entries: {known}")


def _named_loader(name: str, trainer: Any) -> Any:
    if trainer is None:
        raise TrainingError(
            f"scoring_data={name!r} is an entry of the Trainer's eval_dataset, which a callback does not see; call "
            "allocation.attach(trainer) before trainer.train()"
        )
    check_name(name, trainer)
    return trainer.get_eval_dataloader(name)


def _row_batches(
    rows: Any, training: Any, loader: Any, options: ScoringSetChoices, args: TrainingArguments
) -> RowBatches:
    made_on_use = (getattr(training, "format", None) or {}).get("type") == "custom"  # with_transform
    read = None if made_on_use else getattr(training, "column_names", None)  # unused columns are gone from it already
    collate = loader.collate_fn
    size = options.measure.scoring_batch_size or min(args.train_batch_size, len(rows))
    if not len(rows):
        raise DataError("the scoring set has no examples; give at least one batch")
    if read and isinstance(rows[0], Mapping):
        if missing := [name for name in read if name not in rows[0]]:
            raise DataError(
                f"scoring_data has columns {', '.join(rows[0])}, and training reads {', '.join(read)}: {missing[0]} is missing. "
                "Give rows that are prepared as the training data; where the Trainer prepares them itself (TRL), give "
                "eval_dataset={'scoring': rows} and scoring_data='scoring'"
            )
        if hasattr(rows, "select_columns"):
            rows = rows.select_columns(list(read))
        else:

            def collate(chosen: list[Any]) -> Any:
                return loader.collate_fn([{name: row[name] for name in read} for row in chosen])

    return RowBatches(rows, collate, size, args.seed)
