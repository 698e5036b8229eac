"""A factor on the output of every layer of an adapter while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

from lorank.adapter.triplet import TripletAdapter


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
