"""Training of stacked adapters, as Trainer trains one: AdamW, the section's schedule, gradients clipped for each adapter."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import get_scheduler

from lorank.errors import TrainingError
from lorank.models.base_dtype import is_narrow
from lorank.recipe.sections import TrainingSection
from lorank.scoring.batches import Batch, call, loss_in, on_device_of, shifts_labels
from lorank.tasks.example_losses import example_losses
from lorank.training.stacked_adapters import StackedAdapters


def train_stacked(
    stacked: StackedAdapters,
    batches: Iterable[Batch],
    section: TrainingSection,
    steps: int,
    rates: Sequence[float] | None = None,
) -> None:
    """Train all adapters of a stack on the same batches.

    The loss is the model's own, a mean over targets. All adapters see the same targets, so the mean over the stack is the mean
    over adapters of their own losses, and each gets the gradient of its own. Norms are taken, and clipped, for each adapter
    alone. An adapter whose rate is too large for it becomes NaN and does not disturb the others.

    Args:
        stacked: changed in place.
        batches: micro-batches, `gradient_accumulation` of them a step; iterated again when they end.
        section: says schedule, warm-up, weight decay and clipping; its lengths and batch size are the caller's matter.
        steps: optimizer steps.
        rates: peak learning rate of each adapter; None: the section's for all.

    Raises:
        TrainingError: no batches, or rates that are not one for each adapter.

    """
    chosen = list(rates if rates is not None else [section.learning_rate] * stacked.count)
    if len(chosen) != stacked.count or min(chosen) <= 0:
        raise TrainingError(f"rates are {chosen}; give one above 0 for each of {stacked.count} adapters")
    most = max(chosen)
    shares = None if len(set(chosen)) == 1 else torch.tensor([rate / most for rate in chosen])
    optimizer = torch.optim.AdamW(_groups(stacked, chosen, section.weight_decay), eps=1e-8)
    scheduler = get_scheduler(section.scheduler, optimizer, warmup_steps(section, steps), steps)
    source = _endless(batches)
    with stacked:
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(section.gradient_accumulation):
                loss = loss_in(call(stacked.model, stacked.stacked(on_device_of(stacked.model, next(source)))))
                if loss is None:
                    raise TrainingError("the model returns no loss for these batches; give batches with labels")
                (loss * (stacked.count / section.gradient_accumulation)).backward()
            if section.max_grad_norm:
                _clip(stacked, section.max_grad_norm)
            before = None if shares is None else [p.detach().clone() for p in stacked.parameters()]
            optimizer.step()
            if before is not None and shares is not None:
                _rescale(stacked.parameters(), before, shares)
            scheduler.step()


def trained_otherwise(section: TrainingSection) -> list[str]:
    """What `train_stacked` does not do as the recipe says: notes, empty where there is nothing."""
    own = [] if section.optimizer in (None, "adamw_torch", "adamw_torch_fused") else [f"optimizer {section.optimizer}"]
    own += [] if section.loraplus_lr_ratio is None else ["LoRA+"]
    said = "adapters that train side by side"
    notes = [f"{' and '.join(own)}: {said} train by AdamW at one learning rate"] if own else []
    if section.on_nonfinite == "skip":
        notes.append(f"on_nonfinite skip: {said} leave no step out; one whose loss is not finite goes on as it is")
    return notes


@torch.no_grad()
def losses_of(stacked: StackedAdapters, batches: Iterable[Batch]) -> torch.Tensor:
    """Mean loss of each example under each adapter, `(adapters, examples)` float64 on the CPU, in the order of the batches.

    Raises:
        TrainingError: the model's own loss is not the mean of these: they would be of another loss than was trained by.

    """
    found, shifted = list[torch.Tensor](), shifts_labels(stacked.model)
    with stacked:
        for batch in batches:
            whole = stacked.stacked(on_device_of(stacked.model, batch))
            outputs = call(stacked.model, whole)
            sums, counts = example_losses(outputs.logits, whole["labels"], shifted=shifted)
            if not found:
                _check_same(outputs.loss, sums, counts)
            found.append((sums.double() / counts).reshape(stacked.count, -1).cpu())
    return torch.cat(found, 1)


def check_stackable(stacked: StackedAdapters, batch: Batch) -> None:
    """Refuse a model in which one adapter's rows change another's: each has to give the same alone and in the stack.

    The factors B, which are zero, are set to draws for the length of this check that change the outputs much.

    Raises:
        TrainingError: the outputs differ.

    """
    if stacked.count < 2:
        return
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for b in stacked.b.values():
                b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
        together = losses_of(stacked, [batch])
        some = sorted({0, stacked.count // 2, stacked.count - 1})
        alone = torch.cat([losses_of(stacked.only(k), [batch]) for k in some])
    finally:
        with torch.no_grad():
            for b in stacked.b.values():
                b.zero_()
    half = torch.is_autocast_enabled() or is_narrow(stacked.model)
    if not torch.allclose(together[some], alone, rtol=5e-2 if half else 1e-3, atol=1e-4):
        raise TrainingError(
            "adapters of this model cannot be trained side by side: one gives other losses in a stack than alone "
            f"({float(together[some].mean()):.6g}, {float(alone.mean()):.6g}); train them one at a time: --side-by-side 1"
        )


def warmup_steps(section: TrainingSection, steps: int) -> int:
    """Steps in which the rate rises, as TrainingArguments counts them."""
    return section.warmup if isinstance(section.warmup, int) else math.ceil(section.warmup * steps)


def _groups(stacked: StackedAdapters, rates: Sequence[float], weight_decay: float) -> list[dict[str, object]]:
    groups: list[dict[str, object]] = [{"params": stacked.parameters(), "lr": max(rates), "weight_decay": weight_decay}]
    for k, rate in enumerate(rates):
        named = stacked.head_parameters(k)
        for decays in (True, False):
            own = [p for name, p in named if name.endswith("bias") is not decays]
            if own:
                groups.append({"params": own, "lr": rate, "weight_decay": weight_decay * decays})
    return groups


def _clip(stacked: StackedAdapters, most: float) -> None:
    held = [p.grad for p in stacked.parameters() if p.grad is not None]
    heads = [[p.grad for _, p in stacked.head_parameters(k) if p.grad is not None] for k in range(stacked.count)]
    squares = torch.stack([gradient.square().sum((1, 2)) for gradient in held]).sum(0)
    if any(heads):
        squares = squares + torch.stack([torch.stack([g.square().sum() for g in own]).sum() for own in heads])
    factors = (most / (squares.sqrt() + 1e-6)).clamp_max(1)
    for gradient in held:
        gradient.mul_(factors[:, None, None])
    for factor, own in zip(factors, heads, strict=True):
        for gradient in own:
            gradient.mul_(factor)


@torch.no_grad()
def _rescale(parameters: Sequence[nn.Parameter], before: Sequence[torch.Tensor], shares: torch.Tensor) -> None:
    """AdamW's step is in proportion to the rate: a share of the rate is that share of the step."""
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(old + (parameter - old) * shares.to(old.device)[:, None, None])


def _check_same(loss: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    expected = sums.double().sum() / counts.sum()
    if bool(torch.isfinite(loss)) and not torch.allclose(loss.double(), expected, rtol=1e-3, atol=1e-5):
        raise TrainingError(
            f"the model's loss is {float(loss):.6g}, the mean over examples of the stock loss {float(expected):.6g}: this model "
            "trains by another loss, so examples cannot be judged one by one"
        )


def _endless(batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[Batch]:
    while True:
        seen = False
        for batch in batches:
            seen = True
            yield batch
        if not seen:
            raise TrainingError("there are no batches to train on; give at least one")
