"""The test losses of each example, as a small file: what comparisons pair by example."""

from pathlib import Path

import numpy as np

from lorank.artefact import write_atomically
from lorank.errors import DataError

LOSSES = "losses.npy"


def write_losses(path: Path, sums: np.ndarray, counts: np.ndarray, order: np.ndarray) -> None:
    """Write the losses of a test part in the order of its rows: float32 `(2, examples)`, sums above numbers of targets.

    Args:
        path: of the file, which is written whole or not at all.
        sums: summed loss of each example `(examples,)`, as they were evaluated.
        counts: targets of each example `(examples,)`: 1 for a class or a number, tokens for a text.
        order: row of each of them in the test part `(examples,)`.

    """
    content = np.empty((2, len(order)), dtype=np.float32)
    content[:, order] = np.stack([sums, counts])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get a second ending
            np.save(file, content, allow_pickle=False)

    write_atomically(path, write)


def read_losses(path: Path) -> np.ndarray:
    """Mean loss of a target of each example `(examples,)` float64, in the order of the test part's rows.

    Raises:
        DataError: a file that does not hold losses.

    """
    sums, counts = read_sums(path)
    return sums / counts


def read_sums(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss and number of targets of each example `(examples,)` float64, in the order of the test part's rows.

    Raises:
        DataError: as `read_losses`.

    """
    try:
        content = np.load(path, allow_pickle=False)
        if content.dtype != np.float32 or content.ndim != 2 or len(content) != 2 or not (content[1] > 0).all():
            raise ValueError(f"{content.dtype} {content.shape} in place of float32 (2, examples)")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it: the comparison then has no losses of it") from None
    return content[0].astype(np.float64), content[1].astype(np.float64)
