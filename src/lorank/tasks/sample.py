"""A random share of the rows of a part, drawn by a seed of the data: every seed, method and learning rate sees the same rows."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from lorank.errors import DataError
from lorank.tasks.section import EVAL, SCORING, SampleSection


@dataclass(frozen=True)
class DrawnRows:
    """Which rows of a part are used.

    Attributes:
        rows: their numbers in the file or split, ascending.
        of: how many rows the part has.

    """

    rows: tuple[int, ...]
    of: int


def drawn_rows(sample: SampleSection | None, part: str, count: int) -> DrawnRows | None:
    """Which of `count` rows are used; None where all are.

    Rows are put in a random order by `sample.seed` and the first `round(share · count)` are taken, so that the rows of a smaller
    share are among those of a larger one.

    Args:
        sample: of the recipe; None draws nothing.
        part: `train`, or the name of a test part.
        count: rows of the part.

    Raises:
        DataError: the share leaves no rows.

    """
    if sample is None or part in (EVAL, SCORING):
        return None
    key = "train" if part == "train" else "test"
    share: float = getattr(sample, key)
    if share == 1:
        return None
    taken = round(share * count)
    if taken < 1:
        raise DataError(f"data.sample.{key}: {share} of the {count:,} rows of {part} leaves none; raise it")
    order = list(range(count))
    random.Random(f"{sample.seed}/sample of the data").shuffle(order)
    return DrawnRows(tuple(sorted(order[:taken])), count)


def sampled(
    sample: SampleSection | None, parts: Mapping[str, Dataset]
) -> tuple[dict[str, Dataset], dict[str, DrawnRows]]:
    """The parts with the rows that are used, in their order, and which rows these are (of parts of which not all are).

    Raises:
        DataError: a part without rows.

    """
    drawn = {part: found for part, rows in parts.items() if (found := drawn_rows(sample, part, len(rows))) is not None}
    kept = {part: rows.select(drawn[part].rows) if part in drawn else rows for part, rows in parts.items()}
    return kept, drawn


def check_classes(names: Sequence[str], before: Dataset, after: Dataset) -> str | None:
    """What to say of classes of the training data that the share leaves without a row; None where there are none.

    Raises:
        DataError: a single class is left.

    """
    left = set(after["labels"][:])
    if len(left) < 2:
        raise DataError(
            f"data.sample.train leaves the single class {names[left.pop()]!r} to train on; raise it, or give another "
            "data.sample.seed"
        )
    lost = [names[number] for number in sorted(set(before["labels"][:]) - left)]
    if not lost:
        return None
    return (
        f"data.sample.train leaves {len(lost)} of {len(names)} classes without a training example: {', '.join(lost[:20])}; the "
        "head keeps them and cannot learn them; raise it, or give another data.sample.seed"
    )
