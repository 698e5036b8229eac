"""What each triplet of a trained adapter is worth: its energy, or its share of the loss that the adapter takes away."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import PathScoreOptions
from lorank.engine.path import PathScorer
from lorank.engine.smoother import RunningSmoother
from lorank.errors import AdapterError, DataError
from lorank.pruning.energy import triplet_energies
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss

By = Literal["path", "svd"]


def choose_score(by: str | None, *, data: bool) -> str:
    """What triplets are scored by: as asked, else by path where there is data.

    Raises:
        AdapterError: no such score.
        DataError: a score that needs data, and there is none.

    """
    if by not in (None, *get_args(By)):
        raise AdapterError(f"by is {by!r}; allowed: {', '.join(map(repr, get_args(By)))}")
    if by == "path" and not data:
        raise DataError("pruning by 'path' looks at the loss and needs data with labels; give it, or use 'svd'")
    return by or ("path" if data else "svd")


def energy_scores(adapter: TripletAdapter, provenance: dict[str, Any]) -> ImportanceScores:
    """Scores by `"svd"`: the energy of each triplet."""
    return ImportanceScores(triplet_energies(adapter), _costs(adapter), None, provenance)


def path_scores(
    model: PeftModel,
    adapter: TripletAdapter,
    batches: Sequence[Batch],
    intervals: int,
    loss: SummedLoss,
    provenance: dict[str, Any],
) -> ImportanceScores:
    """Scores by `"path"`: shares of the loss that the adapter takes away, the mean over the targets of all batches."""
    options = PathScoreOptions(nodes="midpoint", intervals=intervals, draw="sweep", parameter_factor="signed")

    counted = 0

    def summed(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal counted
        total, counts = loss(model, batch)
        counted += int(counts.sum())
        return total

    scorer, accumulated = PathScorer(model, adapter, options, loss=summed), RunningSmoother("sum")
    for number, batch in enumerate(batches):
        accumulated.add([scorer.batch_scores(batch, number)])
    targets = counted / scorer.passes_per_batch
    errors = accumulated.standard_errors()
    made = {**provenance, "scoring": options.model_dump(mode="json"), "batches": len(batches)}
    return ImportanceScores(
        _by_module(adapter, accumulated.scores()[0] / targets),
        _costs(adapter),
        None if errors is None else _by_module(adapter, errors[0] / targets),
        made,
    )


def _by_module(adapter: TripletAdapter, values: torch.Tensor) -> dict[str, np.ndarray]:
    parts = values.double().cpu().split(list(adapter.ranks))
    return {module: part.numpy() for module, part in zip(adapter.names, parts, strict=True)}


def _costs(adapter: TripletAdapter) -> dict[str, int]:
    return {
        n: int(layer.in_features + layer.out_features) for n, layer in zip(adapter.names, adapter.layers, strict=True)
    }
