"""Training at a random point of the path: the adapter's output is scaled by a factor drawn for each micro-batch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import Choices


def drawn_gain(options: Choices, seed: str) -> float:
    """`α` drawn from {1/N, ..., 1}, or `α³` where the path moves P, λ and Q (IGU-LoRA's code); a function of the seed."""
    n = options.intervals if isinstance(options.intervals, int) else 20
    drawn = random.Random(seed).randint(1, n) / n
    return drawn**3 if options.moved == "all" else drawn


def set_gain(adapter: TripletAdapter, gain: float) -> None:
    """Scale the output of every layer of the adapter by `gain` while it trains."""
    for layer in adapter.layers:
        layer.training_gain = gain


@contextmanager
def unit_gain(adapter: TripletAdapter) -> Iterator[None]:
    """The output as it is, whatever factor the last micro-batch had."""
    gains = [layer.training_gain for layer in adapter.layers]
    set_gain(adapter, 1.0)
    try:
        yield
    finally:
        for layer, gain in zip(adapter.layers, gains, strict=True):
            layer.training_gain = gain
