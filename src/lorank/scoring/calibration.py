"""One pass over the calibration examples: column sums of a score for every layer, `O(d_in)` numbers each, streamed."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorank.errors import DataError, ScoresError
from lorank.models.quantization import packed_for_inference
from lorank.scoring.batches import Batch, SummedLoss, summed_loss
from lorank.scoring.calibration_sums import CalibrationSums, add_to
from lorank.scoring.curvature.fisher import squared_gradient_columns
from lorank.scoring.curvature.gram import input_energy
from lorank.scoring.curvature.hutchinson import OuterProductProbes
from lorank.scoring.curvature.kfac import output_energy
from lorank.scoring.expert_gradients import columns_of_experts, gradients_of_experts
from lorank.scoring.forward_passes import ForwardPasses
from lorank.scoring.gradient import weighted_gradient_columns
from lorank.scoring.layer_hooks import LayerHooks, OutputGradientHook, frozen
from lorank.scoring.precision import at_least_fp32
from lorank.scoring.split.collectives import raised_in_all
from lorank.scoring.split.numbered_batches import NumberedBatches
from lorank.scoring.split.several_processes import is_sharded
from lorank.scoring.undisturbed import undisturbed
from lorank.scoring.weights import PACKED, weight_of
from lorank.targets import Target

Quantity = Literal["gram", "fisher", "kfac", "hutchinson", "gradient"]


def calibrate(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Batch],
    quantity: Quantity,
    *,
    folds: int = 8,
    seed: int = 0,
    probes: int = 1,
    modules_at_once: int | Literal["all"] = 1,
    loss: SummedLoss = summed_loss,
) -> CalibrationSums:
    """Run the model over the batches and add up `quantity` for every target.

    An example's gradient of a weight is that of all rows that its layer works on for this example: those of all its calls,
    and those that all examples share (DeBERTa's relative positions), which add to the gradient of each example what its own
    loss has of them. So too where inputs alone are summed: shared rows count once for each example.

    Parameters of fused experts (`fisher` and `gradient`) are looked at by their own gradient, which is that of a whole batch:
    with one among the targets, examples go through the model one at a time.

    Other weights are frozen meanwhile, so no gradient of a weight is made but those of single examples inside an estimator; the
    model is left as it was. Gradient checkpointing stays on if the model is in training mode with it.

    With several processes each passes its share of the batches, see `NumberedBatches`, and all get the sums of all; they are
    added up before anything is checked, so a process without a share does not fail alone. Of a model that FSDP2 shards all
    processes pass all batches, since each pass takes them all.

    Args:
        model: in any dtype, quantised or offloaded; the first target's inputs need not require gradients.
        targets: the layers.
        batches: mappings of model inputs; an example is a row.
        quantity: what is added up: `lorank.scoring.curvature`, `lorank.scoring.gradient`.
        folds: parts of the calibration set that are summed apart.
        seed: of Hutchinson's probes.
        probes: Hutchinson's probes of every example.
        modules_at_once: modules that share a second derivative of Hutchinson's.
        loss: sum of the losses of a batch, and the targets of each example; for `gram` too it is what calls the model,
            unless it is transformers' own.

    Raises:
        DataError: no batches, batches that the model does not take, no labels where they are needed, not one target.
        ScoresError: inputs, gradients or losses that are not finite, or no layer that can be scored; an error of another
            process; second derivatives of a sharded model.
        TargetError: see `is_sharded`.

    Warns:
        LorankWarning: names the layers that cannot be scored, such as those that never ran, and leaves them out.

    """
    if quantity != "gram" and any(map(packed_for_inference, (m for m in model.modules() if hasattr(m, "quant_state")))):
        raise ScoresError(PACKED)
    sharded = is_sharded(model)
    if sharded and quantity == "hutchinson":
        raise ScoresError(
            "FSDP frees weights that second derivatives need; use estimator='fisher' or 'kfac', or score a model that is not "
            "sharded"
        )
    numbered = NumberedBatches(batches, shared=not sharded)
    hooks = _Summing(model, targets, quantity, folds, OuterProductProbes(targets, seed, modules_at_once))
    with raised_in_all(), frozen(model), hooks, undisturbed(model), ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(quantity != "gram"))
        if quantity == "hutchinson":  # the fused kernels of attention have no second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        hooks.walk(
            numbered, lambda batch, count: hooks.some(batch, count, probes if quantity == "hutchinson" else 1, loss)
        )
    numbered.check_same()
    hooks.sums.left_out, hooks.sums.alone = hooks.left_out, hooks.alone
    if numbered.shared:
        hooks.sums = hooks.sums.over_processes(numbered.examples)
    hooks.sums.batches = numbered.batches
    hooks.left_out = hooks.sums.left_out
    hooks.check()
    idle = "never ran in the forward pass of the calibration batches"
    ran = {*hooks.sums.columns, *(() if hooks.masked else hooks.sums.inputs)}
    hooks.leave_out({target.name: idle for target in targets if target.name not in ran})
    for sums in (hooks.sums.columns, hooks.sums.outputs, hooks.sums.tokens, hooks.sums.traces):
        for name in hooks.left_out:
            sums.pop(name, None)
    if quantity == "hutchinson":
        torch._foreach_div_(list(hooks.sums.columns.values()), probes)
    return hooks.sums


class _Summing(LayerHooks):
    """What is looked at, and the sums that it adds to."""

    def __init__(
        self, model: nn.Module, targets: Sequence[Target], quantity: Quantity, folds: int, probes: OuterProductProbes
    ) -> None:
        # The others see padding only where the loss does.
        super().__init__(model, targets, masked=quantity in ("gram", "kfac"))
        self.quantity, self.folds, self.probes = quantity, folds, probes
        self.passes = ForwardPasses(model, targets)
        self.sums = CalibrationSums(torch.zeros(folds, dtype=torch.float64))
        self._new = self.sums  # of the batch that is under way
        self._start = torch.zeros((), requires_grad=True)
        self._probed: list[torch.Tensor] = []  # traces `(modules, examples)` of each direction of the batch under way
        self._forward, self._fold_of = False, torch.empty(0, dtype=torch.long)
        self._calls: dict[str, int] = {}
        self._pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        if any(target.experts for target in targets):
            self.go_alone("the gradient of a parameter of experts is that of all examples of a batch")

    def __enter__(self) -> "_Summing":
        self._open.enter_context(gradients_of_experts(self.model, self.targets, self._add_experts))
        super().__enter__()
        return self

    def some(self, batch: Batch, count: int, probes: int, loss: SummedLoss) -> None:
        """Add what a batch of `count` examples gives, after all of it is there."""
        self._new = CalibrationSums(torch.zeros(self.folds, dtype=torch.float64), examples=count)
        self._probed = []
        for probe in range(probes):
            self.one_batch(batch, count, probe, loss)
        if self._probed:
            for target, traces in zip(self.targets, torch.stack(self._probed, 1).cpu(), strict=True):
                self._new.traces[target.name] = traces
        self.sums.add(self._new)

    def one_batch(self, batch: Batch, count: int, probe: int, loss: SummedLoss) -> None:
        """Forward and, where gradients are needed, backward."""
        examples = range(self.first, self.first + count)
        self._fold_of = torch.tensor([example % self.folds for example in examples])
        self._calls, self._pairs = {}, {}
        if self.quantity == "hutchinson":
            self.probes.draw(examples, probe)
        self._forward = True
        if self.quantity == "gram":
            self.passes.run(batch, loss)
            self._new.targets.index_add_(0, self._fold_of, torch.ones(count, dtype=torch.float64))
            return
        total, counts = loss(self.model, batch)
        self._forward = False  # what runs from here on is recomputed by gradient checkpointing
        if not isinstance(counts, torch.Tensor) or counts.shape != (count,):
            raise DataError(
                f"loss= returned {counts!r} as number of targets; return the sum of losses and a tensor with a "
                f"number for each of the {count} examples"
            )
        counts = counts.cpu()
        if probe == 0:
            self._new.targets.index_add_(0, self._fold_of, counts.double())
        if not counts.sum():
            return
        bad = (~torch.isfinite(total.detach())).long()
        self.sums.bad_losses = bad if self.sums.bad_losses is None else self.sums.bad_losses + bad
        if self.quantity == "hutchinson":
            found, idle = self.probes.columns(total), torch.zeros(count, dtype=torch.float64, device=total.device)
            for name, columns in found.items():
                add_to(self._new.columns, name, self._by_fold(columns))
            traces = {name: columns.sum(1, dtype=torch.float64).to(total.device) for name, columns in found.items()}
            self._probed.append(torch.stack([traces.get(target.name, idle) for target in self.targets]))
            self._new.counts, self._new.numbers = counts.double(), torch.tensor(examples)
        elif total.requires_grad:
            total.backward()
            for name in list(self._pairs):  # of a layer's several calls some had no part in the loss
                self._add_gradient(name)

    def after_layer(self, name: str, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Look at the inputs, and see to it that the output gradient will be shown."""
        if self._forward:
            self._calls[name] = self._calls.get(name, 0) + 1
            self.rows(x, name)  # raises before anything is passed back
            found = self.once(x, lambda: self._inputs(x, name))
            kinds = (self._new.columns, self._new.tokens) if self.masked else (self.sums.inputs,)
            for sums, values in zip(kinds, found, strict=True):
                add_to(sums, name, values)
        if self.quantity == "gram":
            return output
        if self.quantity == "hutchinson":
            return self.probes.move(name, self.rows(x, name), self.rows(output, name)).reshape(output.shape)
        return OutputGradientHook.apply(output, x, self._start, lambda x, delta: self._gradient(name, x, delta))

    def _inputs(self, x: torch.Tensor, name: str) -> tuple[torch.Tensor, ...]:
        """Energies of an input and its real tokens, both by fold; or a number that is finite if the input is."""
        if not self.masked:
            return (x.sum(dtype=torch.promote_types(x.dtype, torch.float32)),)
        rows, mask = self.rows(x, name), self.mask(x, name)
        tokens = torch.full((self.count,), rows.shape[1]) if mask is None else mask.sum(1)
        return self._by_fold(input_energy(rows, mask)), self._by_fold(tokens)

    def _gradient(self, name: str, x: torch.Tensor, delta: torch.Tensor) -> None:
        """Output gradient of one call; a layer that ran several times is looked at when all its calls are there."""
        pairs = self._pairs.setdefault(name, [])
        pairs.append((self.rows(x, name), self.rows(delta, name)))
        if len(pairs) == self._calls[name]:
            self._add_gradient(name)

    def _add_gradient(self, name: str) -> None:
        pairs = self._pairs.pop(name)
        inputs, deltas = (torch.cat(part, 1) if len(part) > 1 else part[0] for part in zip(*pairs, strict=True))
        if self.quantity == "kfac":
            add_to(self._new.outputs, name, self._by_fold(output_energy(deltas)))
        elif self.quantity == "fisher":
            add_to(self._new.columns, name, self._by_fold(squared_gradient_columns(inputs, deltas)))
        else:
            weight = weight_of(self.model.get_submodule(name))
            add_to(self._new.columns, name, self._by_fold(weighted_gradient_columns(inputs, deltas, weight)))

    def _add_experts(self, target: Target, gradient: torch.Tensor, weight: torch.Tensor) -> None:
        squared = self.quantity == "fisher"
        value = (lambda g, _: g.square()) if squared else (lambda g, w: (g * w).abs())
        add_to(self._new.columns, target.name, self._by_fold(columns_of_experts(target, gradient, value, weight)))

    def _by_fold(self, values: torch.Tensor) -> torch.Tensor:
        """`(folds, ...)`: sums of the examples' values `(examples, ...)`, in at least fp32."""
        values = at_least_fp32(values.detach())
        sums = values.new_zeros(self.folds, *values.shape[1:])
        return sums.index_add_(0, self._fold_of.to(values.device), values)

    def check(self) -> None:
        """Raise what a pass found. Here, and once a batch to count its labels, the device is waited for."""
        if not self.sums.targets.sum():
            raise DataError("not one label of the calibration examples counts (all are -100); give labelled examples")
        for name, values in (self.sums.columns if self.masked else self.sums.inputs).items():
            if not bool(torch.isfinite(values).all()):
                raise ScoresError(f"the inputs of {name!r} are not finite; use a wider dtype, or look at its weights")
        if self.sums.bad_losses is not None and bool(self.sums.bad_losses):
            raise ScoresError("the loss of a calibration batch is not finite; use a wider dtype, or check its labels")
        for sums in (self.sums.columns, self.sums.outputs):
            for name, values in sums.items():
                if not bool(torch.isfinite(values).all()):
                    raise ScoresError(f"gradients at {name!r} are not finite; use a wider dtype")
