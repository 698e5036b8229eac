"""transformers' Trainer, and TRL's SFTTrainer, with a seeded data order, and a stop at NaN, or steps left out."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from lorank.artefact import disk_problem
from lorank.errors import OutputError, TrainingError
from lorank.in_training.trainer_setup import put_first
from lorank.training.checkpoints import where_it_goes_on
from lorank.training.nonfinite import SkipNonFinite


class SeededOrder(Sampler[int]):
    """Order of the examples in an epoch: a function of seed and epoch alone, so a resumed run sees the same batches."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, group_by_length: bool) -> None:
        self.lengths, self.batch_size, self.seed, self.group_by_length = (
            list(lengths),
            batch_size,
            seed,
            group_by_length,
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(random.Random(f"{self.seed}/order/{self.epoch}").getrandbits(63))
        if self.group_by_length:
            yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        else:
            yield from torch.randperm(len(self.lengths), generator=generator).tolist()


class StageTrainer(Trainer):
    """Trainer of one stage.

    Args:
        stage: name for messages.
        order: data order; its epoch is set as epochs begin. None: the data are a stream, which has its own.
        loraplus_lr_ratio: of LoRA+, for a PEFT LoRA; None: one learning rate for all.
        skip: whether a step that is not finite is left out; False: training stops.
        **options: of `transformers.Trainer`.

    """

    optimizer: Any  # Trainer's, which gives it no type
    weighs_tokens = False  # every micro-batch weighs the same, and Trainer divides the loss by their number

    def __init__(
        self,
        *,
        stage: str,
        order: SeededOrder | None,
        loraplus_lr_ratio: float | None = None,
        skip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.stage, self.order, self.loraplus_lr_ratio = stage, order, loraplus_lr_ratio
        if not self.weighs_tokens:
            self.model_accepts_loss_kwargs = False
        self._first_bad_step = torch.tensor(-1, device=self.args.device)
        self.skips = SkipNonFinite(self) if skip else None
        # First in the list: the epoch must be set before the order is asked for.
        if order is not None:
            self.callback_handler.callbacks.insert(0, _SetEpoch(order))

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder | None:
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, or with LoRA+ PEFT's groups of it, in which B learns faster than A."""
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            trained = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            options |= {"loraplus_lr_ratio": self.loraplus_lr_ratio, "loraplus_weight_decay": self.args.weight_decay}
            self.optimizer = create_loraplus_optimizer(trained, kind, **options)
        return super().create_optimizer(model)

    def train(self, *args: Any, **options: Any) -> Any:
        """Trainer's; afterwards it says how many steps were left out."""
        if self.skips is None:
            return super().train(*args, **options)
        put_first(self, self.skips)  # before allocations, which measure a step
        found = super().train(*args, **options)
        self.skips.warn()
        return found

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass. Whether the loss is finite is noted on the device, without a host sync."""
        step = self.state.global_step
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.skips is not None:
            return self.skips.noted(loss)
        bad = ~torch.isfinite(loss) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, step + 1, self._first_bad_step)
        return loss

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        try:
            super()._save_checkpoint(*args, **options)
        except Exception as error:
            if (problem := disk_problem(error)) is None:
                raise
            raise OutputError(
                f"{self.args.output_dir}: no checkpoint can be written at step {self.state.global_step}: {problem}; earlier "
                "checkpoints are kept: make room, and run the same command again"
            ) from None

    def check_finite(self) -> None:
        """Raise if a loss or a trained weight is not finite. One host sync: called when something is logged or saved.

        Raises:
            TrainingError: names the first bad step.

        """
        step = int(self._first_bad_step)
        trained = [p.detach() for p in self.model.parameters() if p.requires_grad]
        if step < 0 and bool(torch.isfinite(torch.stack(torch._foreach_norm(trained))).all()):
            return
        what = (
            f"the loss is not finite at step {step}"
            if step >= 0
            else f"weights are not finite at step {self.state.global_step}"
        )
        skip = ""
        if step >= 0:
            skip = (
                "; or, where few batches are bad, go on in this one with train.on_nonfinite=skip, which leaves them out"
            )
        raise TrainingError(
            f"{self.stage}: {what}; {where_it_goes_on(Path(self.args.output_dir))}. Lower the learning rate, raise warmup"
            f"{', or use precision bf16 in place of fp16' * self.args.fp16}, in a new output directory{skip}"
        )


class _SetEpoch(TrainerCallback):
    def __init__(self, order: SeededOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Resumed in the middle of an epoch, `state.epoch` is a fraction: the order is that of the epoch begun.
        self.order.epoch = int(state.epoch or 0)
