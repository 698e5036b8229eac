"""The loss of each example apart, as transformers' stock losses count it."""

import torch
from torch.nn import functional

from lorank.errors import DataError
from lorank.tasks.text_data import IGNORED


def example_losses(
    logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and number of targets of each example: all sums over all numbers are transformers' mean loss.

    Labels of floating point: the mean over outputs of squared errors, one target an example. Whole numbers: cross entropy, of one
    label an example, or of every token whose label is not -100.

    Args:
        logits: `(examples, outputs)`, or `(examples, tokens, words)` of a model that writes.
        labels: `(examples,)`, `(examples, outputs)` of floating point, or `(examples, tokens)`.
        shifted: whether position t predicts the token behind it, as decoders do; labels are not shifted yet.

    Returns:
        Sums `(examples,)` float32 and numbers of targets `(examples,)` int64, on the device of the logits.

    Raises:
        DataError: logits and labels of shapes that no stock loss takes.

    """
    logits, count = logits.float(), len(labels)
    if labels.is_floating_point():
        if logits.numel() != labels.numel():
            raise DataError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; give a number for each output"
            )
        errors = (logits.reshape(count, -1) - labels.reshape(count, -1).float()).square()
        return errors.mean(1), torch.ones(count, dtype=torch.long, device=logits.device)
    if shifted and labels.ndim > 1:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit; give a label for each example or token"
        )
    flat = functional.cross_entropy(
        logits.flatten(0, -2), labels.long().flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.reshape(count, -1).sum(1), (labels != IGNORED).reshape(count, -1).sum(1)


def right_tokens(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool) -> torch.Tensor:
    """How many of each example's targets are the likeliest token, `(examples,)` int64.

    Args:
        logits: `(examples, tokens, words)`.
        labels: `(examples, tokens)`; -100 is no target.
        shifted: as in `example_losses`.

    """
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return ((logits.argmax(-1) == labels) & (labels != IGNORED)).sum(1)
