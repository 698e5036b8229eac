"""How many labels the head of a saved classifier has, read from the shapes of its tensors."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from lorank.errors import AdapterError


def labels_by_shape(saved: Mapping[str, Sequence[int]], build: Callable[[int], nn.Module]) -> int | None:
    """The number of labels for which a model has heads as large as the saved ones; None where none was saved.

    The heads are the parameters whose first dimension changes with the number of labels. Whatever else was trained whole
    (the first layer of a head, a pooler, a norm) says nothing of it.

    Args:
        saved: name of a parameter, as the model has it -> shape that was saved.
        build: number of labels -> the model; the meta device will do.

    Raises:
        AdapterError: two heads that were saved for different numbers of labels.

    """
    two, three = (
        {name: tuple(parameter.shape) for name, parameter in build(labels).named_parameters()} for labels in (2, 3)
    )
    widths = {}
    for name, shape in two.items():
        each = three[name][0] - shape[0] if shape and name in three else 0  # 1, or more where labels share a head
        if each and name in saved:
            widths[name] = 2 + (saved[name][0] - shape[0]) // each
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name!r} for {width}" for name, width in widths.items())
        raise AdapterError(f"the saved heads are for different numbers of labels: {said}; take them from one training")
    return next(iter(widths.values()), None)
