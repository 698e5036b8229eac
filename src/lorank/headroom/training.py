"""Trainings of plans side by side, seed by seed; the losses of each part are written as they come, and read back."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorank.artefact import write_atomically
from lorank.errors import OutputError, TrainingError, one_line
from lorank.models.base_dtype import autocast_of
from lorank.models.loading import on_own_device
from lorank.models.task_model import TaskModel
from lorank.plan import RankPlan
from lorank.recipe.sections import TrainingSection
from lorank.scoring.batches import Batch
from lorank.tasks.encoding import collator
from lorank.training.epoch_batches import EpochBatches
from lorank.training.prepared import Prepared
from lorank.training.stacked_adapters import StackedAdapters
from lorank.training.stacked_training import check_stackable, losses_of, train_stacked

_SHARE_OF_MEMORY = 0.25


@dataclass
class SideBySide:
    """Trains plans of one exact budget on the same batches and from the same draws, and measures the loss of each example.

    Attributes:
        prepared: the run's; its training part is what plans train on.
        section: how they train.
        steps: optimizer steps.
        held_out: tokenized examples that plans are judged on, none of which is in the training part.
        folder: where losses go.
        console: for lines of progress.
        most: adapters in one pass; lowered to 1 where the model cannot have several.

    """

    prepared: Prepared
    section: TrainingSection
    steps: int
    held_out: Dataset
    folder: Path
    console: Console
    most: int
    checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.rows = self.prepared.tokenize(self.prepared.data.train)
        self.lengths: list[int] = list(self.rows["length"])
        self.sum_of_held_out = hashlib.sha256(json.dumps(self.held_out.to_dict()).encode()).hexdigest()

    def losses(self, plans: Mapping[str, RankPlan], seed: int) -> np.ndarray:
        """Loss of each held-out example after a training of each plan with this seed, measured now or before.

        Args:
            plans: name -> plan.
            seed: of batches, initial factors and new heads.

        Returns:
            `(plans, examples)` float64.

        Raises:
            OutputError: losses in the folder are of other plans or examples.
            TrainingError: a model that cannot be trained so.

        """
        known = self._read(plans, seed)
        missing = [name for name in plans if name not in known]
        while missing:
            task = self._model(seed)
            part, missing = missing[: self.most], missing[self.most :]
            began = time.monotonic()
            found = self._train({name: plans[name] for name in part}, task, seed)
            if found is None:  # one at a time from now on
                missing = part + missing
                continue
            own = dict(zip(part, found, strict=True))
            self._write(own, plans, seed)
            known |= own
            self.console.print(
                f"seed {seed}: {len(known)} of {len(plans)} plans, {time.monotonic() - began:.0f} s", highlight=False
            )
        return np.stack([known[name] for name in plans])

    def complete(self, plans: Mapping[str, RankPlan], seed: int) -> bool:
        """Whether all losses of a seed were measured before."""
        return set(plans) <= set(self._read(plans, seed))

    def timed(self, plans: Sequence[RankPlan], seed: int, steps: int = 2) -> float:
        """Seconds that one seed of these plans would take, from a few steps and one batch of the first of them."""
        task = self._model(seed)
        stacked = self._stacked(list(plans[: self.most]), task, seed)
        if not self._fits(stacked, seed):
            stacked = self._stacked(list(plans[:1]), task, seed)
        batches = list(_first(self._batches(seed), (steps + 1) * self.section.gradient_accumulation))
        with autocast_of(self._precision):
            train_stacked(stacked, batches, self.section, 1)  # the first step is slower
            began = time.monotonic()
            train_stacked(stacked, batches, self.section, steps)
            of_step = (time.monotonic() - began) / steps
            began = time.monotonic()
            losses_of(stacked, _first(self._judged(), 1))
            of_batch = time.monotonic() - began
        judged = -(-len(self.held_out) // self.section.batch_size)
        return (of_step * self.steps + of_batch * judged) * len(plans) / stacked.count

    @property
    def _precision(self) -> str:
        """fp16 would need its losses scaled for each adapter."""
        return "bf16" if self.prepared.settings.precision == "bf16" else "fp32"

    def _batches(self, seed: int) -> EpochBatches:
        return EpochBatches(self.prepared, self.section, self.rows, seed)

    def _model(self, seed: int) -> TaskModel:
        """The base model; the seed decides a new head."""
        task = replace(self.prepared, settings=replace(self.prepared.settings, seed=seed)).load_model()
        on_own_device(task.model)
        return task

    def _stacked(self, plans: Sequence[RankPlan], task: TaskModel, seed: int) -> StackedAdapters:
        ranks = [plan.ranks for plan in plans]
        scale = self.prepared.settings.scale
        return StackedAdapters(
            task.model, self.prepared.targets, ranks, [seed] * len(plans), scale=scale, heads=task.heads
        )

    def _train(self, plans: Mapping[str, RankPlan], task: TaskModel, seed: int) -> np.ndarray | None:
        stacked = self._stacked(list(plans.values()), task, seed)
        batches = self._batches(seed)
        if not self._fits(stacked, seed):
            return None
        with autocast_of(self._precision):
            train_stacked(stacked, batches, self.section, self.steps)
            found = losses_of(stacked, self._judged()).numpy()
        if not np.isfinite(found).all():
            name = list(plans)[int(np.argwhere(~np.isfinite(found))[0, 0])]
            raise TrainingError(
                f"the losses of plan {name!r}, seed {seed}, are not finite; lower train.learning_rate or raise train.warmup, in "
                "a new output directory"
            )
        return np.asarray(found)

    def _fits(self, stacked: StackedAdapters, seed: int) -> bool:
        """Whether these adapters can train side by side; looked at once. From then on they train one at a time if they cannot."""
        if self.checked or stacked.count == 1:
            return True
        try:
            with autocast_of(self._precision):
                check_stackable(stacked, next(iter(self._batches(seed))))
        except TrainingError as error:
            self.most = 1
            self.console.print(f"note: {error}: this is done now", highlight=False, soft_wrap=True)
            return False
        self.checked = True
        return True

    def _judged(self) -> Iterator[Batch]:
        collate = collator(self.prepared.tokenizer, self.prepared.task_type)
        for start in range(0, len(self.held_out), self.section.batch_size):
            stop = min(start + self.section.batch_size, len(self.held_out))
            yield collate([self.held_out[k] for k in range(start, stop)])

    def _read(self, plans: Mapping[str, RankPlan], seed: int) -> dict[str, np.ndarray]:
        found = dict[str, np.ndarray]()
        for path in sorted((self.folder / f"seed-{seed}").glob("*.safetensors")):
            try:
                with safe_open(path, framework="numpy") as file:
                    said = json.loads((file.metadata() or {})["headroom"])
                    own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                held_out, sums = said["held_out"], {name: said["plans"][name] for name in set(own) & set(plans)}
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise OutputError(
                    f"{path}: damaged ({one_line(error)}); remove it, and its runs are made again"
                ) from None
            if held_out != self.sum_of_held_out:
                raise OutputError(f"{path} holds losses of other held-out examples; give another --output")
            for name, sum_ in sums.items():
                if sum_ != _sum_of(plans[name]):
                    raise OutputError(f"{path} holds losses of another plan {name!r}; give another --output")
            found |= own
        return {name: found[name] for name in plans if name in found}

    def _write(self, losses: Mapping[str, np.ndarray], plans: Mapping[str, RankPlan], seed: int) -> None:
        folder = self.folder / f"seed-{seed}"
        number = 1 + max((int(path.stem) for path in folder.glob("*.safetensors")), default=-1)
        said = {"held_out": self.sum_of_held_out, "plans": {name: _sum_of(plans[name]) for name in losses}}
        tensors = {name: np.ascontiguousarray(values) for name, values in losses.items()}
        write_atomically(
            folder / f"{number:03}.safetensors",
            lambda temporary: save_file(tensors, temporary, {"headroom": json.dumps(said)}),
        )


def side_by_side(prepared: Prepared, config: object, batch: int, longest: int) -> int:
    """How many adapters fit into a part of the memory at a time, from the sizes of the model; at least 1.

    Args:
        prepared: the run's.
        config: of the model.
        batch: examples in a micro-batch.
        longest: tokens of the longest example.

    """
    width, layers = int(getattr(config, "hidden_size", 768)), int(getattr(config, "num_hidden_layers", 12))
    heads = int(getattr(config, "num_attention_heads", 12))
    of_token = layers * (20 * width + 3 * heads * longest)  # what a block keeps for its backward pass, about
    if prepared.section.writes:
        of_token += 4 * int(getattr(config, "vocab_size", 0))
    if torch.cuda.is_available():
        room = 2 * _SHARE_OF_MEMORY * torch.cuda.mem_get_info()[0]
    else:
        room = _SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(room / (4 * of_token * batch * longest)))


def _sum_of(plan: RankPlan) -> str:
    return hashlib.sha256(json.dumps(dict(plan.ranks), sort_keys=True).encode()).hexdigest()


def _first(batches: Iterator[Batch] | EpochBatches, count: int) -> Iterator[Batch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
