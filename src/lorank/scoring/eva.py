"""EVA's explained variance of layer inputs, by PEFT's incremental PCA: ranks for a baseline, and where its `A` starts."""

import time
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn

from lorank.errors import DataError, ScoresError
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss, summed_loss
from lorank.scoring.forward_passes import ForwardPasses
from lorank.scoring.layer_hooks import LayerHooks, frozen
from lorank.scoring.one_shot import ScoringInput
from lorank.scoring.options import InputVarianceOptions
from lorank.scoring.precision import full_precision
from lorank.scoring.split.numbered_batches import NumberedBatches
from lorank.scoring.undisturbed import undisturbed
from lorank.targets import Target


def explained_variance_scores(scoring: ScoringInput) -> ImportanceScores:
    """EVA (arXiv 2410.07170): unit i of a module scores the share of its inputs' variance along principal direction i.

    PEFT walks over the loader until directions stop turning; here every calibration batch is looked at once. The cut is in
    exact parameters where PEFT counts ranks, so that the baseline spends what the others spend.

    Raises:
        DataError: no batches, or too few tokens for `options.components` directions.
        ScoresError: inputs that are not finite.

    """
    began = time.perf_counter()
    batches = NumberedBatches(scoring.needed_batches(), shared=False)
    components = scoring.chosen(InputVarianceOptions).components
    found, alone = principal_inputs(scoring.model, scoring.targets, batches, components, scoring.loss)
    values = {name: ratios.double().cpu().numpy() for name, (_, ratios) in found.items()}
    for name, ratios in values.items():
        if not np.isfinite(ratios).all():
            raise ScoresError(
                f"the inputs of {name!r} are not finite or do not vary; use a wider dtype or more examples"
            )
    made = {
        "calibration": scoring.options.model_dump(mode="json"),
        "examples": batches.examples,
        "seconds": round(time.perf_counter() - began, 3),
    }
    if alone is not None:
        made["one_example_at_a_time"] = alone
    return scoring.scores(values, provenance=made)


@torch.no_grad()
def start_at_principal_inputs(model: PeftModel, scoring: ScoringInput) -> None:
    """Set `A` of every adapted module to its inputs' principal directions, as many as it has rank; `B` stays 0.

    As `init_lora_weights="eva"` of PEFT, without the changes that this makes to the adapter's config.
    """
    layers: dict[str, Any] = {each.name: model.get_base_model().get_submodule(each.name) for each in scoring.targets}
    ranks = [rank for layer in layers.values() for rank in getattr(layer, "r", {}).values()]
    most = max(scoring.chosen(InputVarianceOptions).components, *ranks)
    found, _ = principal_inputs(scoring.model, scoring.targets, scoring.needed_batches(), most, scoring.loss)
    for name, (directions, _) in found.items():
        for adapter_name, a in getattr(layers[name], "lora_A", {}).items():
            a.weight.copy_(directions[: layers[name].r[adapter_name]])


def principal_inputs(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Batch] | NumberedBatches,
    components: int,
    loss: SummedLoss = summed_loss,
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], str | None]:
    """Principal directions of every layer's inputs over all real tokens, largest first.

    Inputs that all examples share (DeBERTa's relative positions) count once for each example, as in `calibrate`. A PCA is no
    sum over examples, so with several processes each passes all batches and gets what one would.

    Returns:
        Module name -> directions `(components, d_in)` and their shares of the variance `(components,)`; fewer where a layer
        has fewer dimensions. Layers with the same inputs share the tensors. And why examples went through the model one at
        a time, None if batches went whole.

    Raises:
        DataError: no batches, batches that the model does not take, or too few tokens for so many directions.
        ScoresError: no layer that can be scored.

    Warns:
        LorankWarning: names the layers that cannot be scored, and leaves them out.

    """
    numbered = batches if isinstance(batches, NumberedBatches) else NumberedBatches(batches, shared=False)
    hooks = _Principal(model, targets, components)
    with frozen(model), hooks, undisturbed(model), torch.no_grad():
        hooks.walk(numbered, lambda batch, _: hooks.some(batch, loss))
    return hooks.result(), hooks.alone


class _State(NamedTuple):
    """The PCA of what a layer has seen, and rows that are too few for it yet. Never changed: layers may share one."""

    pca: IncrementalPCA | None = None
    waiting: torch.Tensor | None = None


_START = _State()


class _Principal(LayerHooks):
    """An incremental PCA for every layer, made once for those that have seen the very same inputs."""

    def __init__(self, model: nn.Module, targets: Sequence[Target], components: int) -> None:
        super().__init__(model, targets, masked=True)
        self.components = components
        self.passes = ForwardPasses(model, targets)
        self._states: dict[str, _State] = {}

    def some(self, batch: Batch, loss: SummedLoss) -> None:
        """Add the inputs of a batch, all or none."""
        before = dict(self._states)
        try:
            self.passes.run(batch, loss)
        except BaseException:
            self._states = before
            raise

    def after_layer(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        known = self.once(x, dict[int, tuple[_State, _State]])
        before = self._states.get(name, _START)
        if id(before) not in known:
            with full_precision(x):
                known[id(before)] = before, self._with_inputs(before, name, x)
        self._states[name] = known[id(before)][1]
        return output

    def _with_inputs(self, before: _State, name: str, x: torch.Tensor) -> _State:
        rows, mask = self.rows(x, name), self.mask(x, name)
        states = (rows.flatten(0, 1) if mask is None else rows[mask]).float()
        if before.waiting is not None:
            states = torch.cat([before.waiting, states])
        wanted = min(self.components, states.shape[1])
        if len(states) < wanted:  # PCA wants as many rows as directions: wait for the next batch, or for the end
            return _State(before.pca, states)
        if before.pca is None:
            # PEFT's own settings; its random SVD takes twice the directions, which a narrow layer does not have.
            low: dict[str, Any] = {"lowrank": True, "lowrank_seed": 42} if 2 * wanted <= min(states.shape) else {}
            pca = IncrementalPCA(n_components=wanted, copy=True, **low)
        else:
            pca = copy(before.pca)
        return _State(pca.partial_fit(states))

    def result(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Directions and shares of all layers but those that are left out."""
        few = f"saw fewer than {self.components} calibration tokens, too few for principal inputs; give more examples"
        idle = "never ran in the forward pass of the calibration batches"
        states = {target.name: self._states.get(target.name) for target in self.targets}
        if all(state is not None and state.pca is None for state in states.values()):
            raise DataError(f"{next(iter(states))!r} {few}")
        why = {n: few if state else idle for n, state in states.items() if state is None or state.pca is None}
        whole: dict[int, IncrementalPCA] = {}
        found = {}
        for target in self.leave_out(why):
            state = self._states[target.name]
            if id(state) not in whole:
                whole[id(state)] = _with_the_rest(state)
            pca = whole[id(state)]
            found[target.name] = (pca.components_, pca.explained_variance_ratio_)
        return found


def _with_the_rest(state: _State) -> IncrementalPCA:
    """The PCA with the rows that still wait, fewer than directions."""
    assert state.pca is not None
    if state.waiting is None:
        return state.pca
    pca = copy(state.pca)
    pca.lowrank = False  # its random SVD wants more rows
    return pca.partial_fit(state.waiting.clone(), check_input=False)
