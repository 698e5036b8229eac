"""Many plain LoRA adapters of one frozen base, side by side on the batch: the base's products are shared."""

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from lorank.errors import TrainingError
from lorank.scoring.batches import Batch
from lorank.targets import Target


class StackedAdapters:
    """Adapters and heads of several plans on one base: adapter k sees rows `k * examples` to `(k + 1) * examples` of a batch.

    Each does what PEFT's LoRA does with the same plan: `W x + scale · B A x`, A uniform in `±1/sqrt(d_in)` (PEFT's kaiming
    start), B zero, no dropout. Draws are a function of module and seed, so plans of one seed share them: unit i of a module
    starts the same in every plan that has it. Factors are padded to the largest rank that a module has in any plan, and masked.

    It is on the model inside of `with` only. The model is put into eval mode there: dropout would be drawn for all adapters at
    once. Afterwards the model is as it was.

    Args:
        model: the base, frozen or not; its parameters do not train.
        targets: modules that a plan may adapt.
        plans: module -> rank, one for each adapter; a module that a plan does not name has rank 0.
        seeds: of each adapter's start.
        scale: `alpha / r` of every module.
        heads: full names of modules that train whole, a copy for each adapter.

    Raises:
        TrainingError: a plan names a module that is not among the targets.

    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        plans: Sequence[Mapping[str, int]],
        seeds: Sequence[int],
        *,
        scale: float,
        heads: Sequence[str] = (),
    ) -> None:
        self.model, self.count, self.scale = model, len(plans), scale
        self.plans, self.heads = [dict(plan) for plan in plans], tuple(heads)
        known = {target.name for target in targets}
        if strange := next((name for plan in plans for name in plan if name not in known), None):
            raise TrainingError(
                f"{strange!r} is in a plan, and is no target of this model; make the plan for this model"
            )
        self.a, self.b, self.masks = dict[str, nn.Parameter](), dict[str, nn.Parameter](), dict[str, torch.Tensor]()
        for target in targets:
            ranks = [plan.get(target.name, 0) for plan in plans]
            if max(ranks):
                self._add(target, ranks, seeds)
        self.copies = {name: [copy.deepcopy(model.get_submodule(name)) for _ in plans] for name in self.heads}
        for one in (one for copies in self.copies.values() for one in copies):
            one.requires_grad_(True)
        self._undo = list[Callable[[], None]]()
        self._rows, self._lengths = 0, frozenset[int]()  # of the batch that was stacked last

    def _add(self, target: Target, ranks: Sequence[int], seeds: Sequence[int]) -> None:
        device = next(self.model.get_submodule(target.name).parameters()).device
        most, bound = max(ranks), 1 / math.sqrt(target.d_in)
        a = torch.zeros(self.count, target.d_in, most)
        for k, seed in enumerate(seeds):
            # Rows are drawn one after the other: the first units start the same, however many there are.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{target.name}/{seed}".encode()))
            a[k] = torch.rand(most, target.d_in, generator=generator).mul_(2 * bound).sub_(bound).T
        mask = torch.arange(most)[None] < torch.tensor(ranks)[:, None]
        self.a[target.name] = nn.Parameter(a.to(device))
        self.b[target.name] = nn.Parameter(torch.zeros(self.count, most, target.d_out, device=device))
        self.masks[target.name] = (mask.float() * self.scale)[:, None].to(device)

    def __enter__(self) -> Self:
        """Put the adapters and heads on the model."""
        wanted = [(p, p.requires_grad) for p in self.model.parameters()]
        modes = [(module, module.training) for module in self.model.modules()]
        own_heads = {name: self.model.get_submodule(name) for name in self.heads}
        self.model.requires_grad_(False)
        self.model.eval()
        hooks = [
            self.model.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: self._adapted(name, args[0], out)
            )
            for name in self.a
        ]
        for name in self.heads:
            self.model.set_submodule(name, _StackedHead(self.copies[name]))

        def undo() -> None:
            for name, module in own_heads.items():
                self.model.set_submodule(name, module)
            for hook in hooks:
                hook.remove()
            for parameter, wants in wanted:
                parameter.requires_grad_(wants)
            for module, mode in modes:
                module.training = mode

        self._undo.append(undo)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the model as it was."""
        self._undo.pop()()

    def _adapted(self, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.count > 1 and self._rows and not self._of_examples(x):
            raise TrainingError(
                f"{name!r} works on rows that belong to no single example (its input has the shape {tuple(x.shape)}, for "
                f"{self._rows} examples), so adapters cannot train side by side; train them one at a time: --side-by-side 1"
            )
        a = self.a[name]
        flat = x.to(a.dtype).reshape(self.count, -1, x.shape[-1])
        added = torch.bmm(torch.bmm(flat, a) * self.masks[name], self.b[name])
        return out + added.reshape(out.shape).to(out.dtype)

    def _of_examples(self, x: torch.Tensor) -> bool:
        """Whether rows of a module's input are those of the batch in its order: examples first, or all tokens in a row."""
        return len(x) == self._rows or (x.ndim == 2 and len(x) in {self._rows * length for length in self._lengths})

    def parameters(self) -> list[nn.Parameter]:
        """Factors of all adapters, `(adapters, d_in, rank)` and `(adapters, rank, d_out)`; heads are in `head_parameters`."""
        return [*self.a.values(), *self.b.values()]

    def head_parameters(self, k: int) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of adapter k's own heads."""
        return [(f"{name}.{own}", p) for name in self.heads for own, p in self.copies[name][k].named_parameters()]

    def only(self, k: int) -> "StackedAdapters":
        """A stack of adapter k alone, which shares nothing with this one."""
        alone = copy.copy(self)
        alone.count, alone.plans, alone._undo = 1, [self.plans[k]], []
        alone.a = {name: nn.Parameter(one[k : k + 1].detach().clone()) for name, one in self.a.items()}
        alone.b = {name: nn.Parameter(one[k : k + 1].detach().clone()) for name, one in self.b.items()}
        alone.masks = {name: one[k : k + 1] for name, one in self.masks.items()}
        alone.copies = {name: [copy.deepcopy(own[k])] for name, own in self.copies.items()}
        return alone

    def stacked(self, batch: Batch) -> dict[str, Any]:
        """The batch once for each adapter, one after the other."""
        shapes = [value.shape for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim]
        sizes = [shape[0] for shape in shapes]
        self._rows, self._lengths = self.count * sizes[0], frozenset(shape[1] for shape in shapes if len(shape) > 1)
        return {
            key: value.repeat(self.count, *[1] * (value.ndim - 1))
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == sizes[0]
            else value
            for key, value in batch.items()
        }

    def factors(self, k: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """PEFT's weights of adapter k: module -> A `(rank, d_in)` and B `(d_out, rank)`, of the modules that it adapts."""
        found = {}
        for name in self.a:
            if rank := self.plans[k].get(name, 0):
                found[name] = (self.a[name][k, :, :rank].detach().T.clone(), self.b[name][k, :rank].detach().T.clone())
        return found

    @torch.no_grad()
    def into_peft(self, k: int, model: PeftModel, adapter: str = "default") -> None:
        """Write adapter k, with its heads, into a PEFT model of its plan.

        Raises:
            TrainingError: the model has other modules or ranks than the plan.

        """
        inside, factors = model.get_base_model(), self.factors(k)
        layers = {name: one for name, one in inside.named_modules() if isinstance(one, LoraLayer)}
        if {name: len(a) for name, (a, _) in factors.items()} != {n: one.r[adapter] for n, one in layers.items()}:
            raise TrainingError(
                "the PEFT model has other modules or ranks than this adapter's plan; make it of the plan"
            )
        for name, (a, b) in factors.items():
            layers[name].lora_A[adapter].weight.copy_(a)
            layers[name].lora_B[adapter].weight.copy_(b)
        for name in self.heads:
            held = inside.get_submodule(name)
            target = held.modules_to_save[adapter] if hasattr(held, "modules_to_save") else held
            target.load_state_dict(self.copies[name][k].state_dict())


class _StackedHead(nn.Module):
    """A head for each adapter: each gets its own rows."""

    def __init__(self, copies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        parts = x.chunk(len(self.copies))
        return torch.cat([one(part, *args, **options) for one, part in zip(self.copies, parts, strict=True)])
