"""EVA's explained variance of layer inputs, by PEFT's incremental PCA: ranks for a baseline, and where its `A` starts."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn

from lorank.errors import DataError, ScoresError
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, examples_in, with_distinct_lengths
from lorank.scoring.one_shot import Subject
from lorank.scoring.path import undisturbed
from lorank.scoring.precision import full_precision
from lorank.scoring.watch import Watching, frozen, on_device_of
from lorank.targets import Target


def explained_variance_scores(subject: Subject) -> ImportanceScores:
    """EVA (arXiv 2410.07170): unit i of a module scores the share of its inputs' variance along principal direction i.

    PEFT walks over the loader until directions stop turning; here every calibration batch is looked at once. The cut is in
    exact parameters where PEFT counts ranks, so that the baseline spends what the others spend.

    Raises:
        DataError: no batches, or too few tokens for `options.components` directions.
        ScoresError: inputs that are not finite.

    """
    began = time.perf_counter()
    counted = [0]

    def batches() -> Iterator[Batch]:
        for batch in subject.needed_batches():
            counted[0] += examples_in(batch)
            yield batch

    found = principal_inputs(subject.model, subject.targets, batches(), subject.options.components)
    values = {name: ratios.double().cpu().numpy() for name, (_, ratios) in found.items()}
    for name, ratios in values.items():
        if not np.isfinite(ratios).all():
            raise ScoresError(
                f"the inputs of {name!r} are not finite or do not vary; use a wider dtype or more examples"
            )
    made = {
        "calibration": subject.options.model_dump(mode="json"),
        "examples": counted[0],
        "seconds": round(time.perf_counter() - began, 3),
    }
    return subject.scores(values, provenance=made)


@torch.no_grad()
def start_at_principal_inputs(model: PeftModel, subject: Subject) -> None:
    """Set `A` of every adapted module to its inputs' principal directions, as many as it has rank; `B` stays 0.

    As `init_lora_weights="eva"` of PEFT, without the changes that this makes to the adapter's config.
    """
    found = principal_inputs(subject.model, subject.targets, subject.needed_batches(), subject.options.components)
    for name, (directions, _) in found.items():
        for adapter_name, a in getattr(model.get_base_model().get_submodule(name), "lora_A", {}).items():
            a.weight.copy_(directions[: model.get_base_model().get_submodule(name).r[adapter_name]])


def principal_inputs(
    model: nn.Module, targets: Sequence[Target], batches: Iterable[Batch], components: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Principal directions of every layer's inputs over all real tokens, largest first.

    Returns:
        Module name -> directions `(components, d_in)` and their shares of the variance `(components,)`; fewer where a layer
        has fewer dimensions. Layers with the same input share the tensors.

    """
    watching = _Principal(model, targets, components)
    with frozen(model), watching, undisturbed(model), torch.no_grad():
        for batch in batches:
            count = examples_in(batch)
            inputs = on_device_of(model, with_distinct_lengths(model, batch))
            watching.begin(inputs, count, masked=True)
            model(**inputs)
    if not watching.count:
        raise DataError("the calibration loader gave no batch; give at least one")
    return watching.result()


class _Principal(Watching):
    """One incremental PCA for every distinct input; which layers share one is seen in the first batch."""

    def __init__(self, model: nn.Module, targets: Sequence[Target], components: int) -> None:
        super().__init__(model, targets)
        self.components = components
        self._pca: dict[str, IncrementalPCA] = {}
        self._waiting: dict[str, torch.Tensor] = {}
        self._leader: dict[str, str] = {}

    def ran(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        leader = self.once(x, lambda: name)
        if self._leader.setdefault(name, leader) == name:
            with full_precision(x):
                self._fit(name, x)
        return output

    def _fit(self, name: str, x: torch.Tensor) -> None:
        rows, mask = self.rows(x, name), self.mask(x, name)
        states = (rows.flatten(0, 1) if mask is None else rows[mask]).float()
        if name in self._waiting:
            states = torch.cat([self._waiting.pop(name), states])
        wanted = min(self.components, states.shape[1])
        if len(states) < wanted:  # PCA wants as many rows as directions: wait for the next batch
            self._waiting[name] = states
            return
        if name not in self._pca:
            # PEFT's own settings; its random SVD takes twice the directions, which a narrow layer does not have.
            low: dict[str, Any] = {"lowrank": True, "lowrank_seed": 42} if 2 * wanted <= min(states.shape) else {}
            self._pca[name] = IncrementalPCA(n_components=wanted, copy=True, **low)
        self._pca[name].partial_fit(states)

    def result(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {}
        for target in self.targets:
            pca = self._pca.get(self._leader.get(target.name, ""))
            if pca is None:
                raise DataError(
                    f"{target.name!r} saw fewer than {self.components} calibration tokens, too few for principal inputs; "
                    "give more examples, or leave it out by targets="
                )
            found[target.name] = (pca.components_, pca.explained_variance_ratio_)
        return found
