"""The probe: ranks before training, from a short training of triplets that is thrown away (I-LoRA's search, without a run)."""

import random
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import get_scheduler

from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.engine.assembly import schedule_of
from lorank.engine.options import ScoringSetChoices
from lorank.engine.overlap import warn_of_overlap
from lorank.engine.path import model_loss
from lorank.engine.scoring_batches import LoaderBatches
from lorank.engine.scoring_set_path import ScoringSetPath
from lorank.engine.smoother import RunningSmoother
from lorank.engine.training_pass import TrainingPass
from lorank.engine.unit_scores import by_module, warn_of_dead_triplets
from lorank.errors import DataError, LorankWarning, RecipeError, ScoresError, TargetError
from lorank.methods.i_lora import I_LORA
from lorank.methods.temporary_triplets import temporary_triplets
from lorank.models.base_dtype import is_narrow
from lorank.models.loading import head_modules
from lorank.processes import processes
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, on_device_of, summed_loss
from lorank.scoring.one_shot import ScoringInput
from lorank.scoring.options import CalibrationOptions
from lorank.scoring.random_streams import RandomStreams, random_streams
from lorank.scoring.split.collectives import process_count
from lorank.scoring.split.several_processes import is_sharded
from lorank.scoring.split.whole_loader import whole_loader
from lorank.targets import unit_costs

DEFAULT_PRESET = "loss-per-parameter"
WARMUP = 0.06  # of the learning rate, as a stage of a recipe
MAX_GRAD_NORM = 1.0
HALF_LOSS_SCALE = 1024.0  # a power of two: nothing but the smallest gradients of fp16 is changed by it


class ProbeOptions(CalibrationOptions):
    """Measure: triplets that train for a few steps, scored on held-out batches."""

    steps: int | None = Field(
        None, ge=4, description="optimizer steps of the short training; scores count in its second half"
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate of its AdamW")
    initial_rank: int = Field(8, ge=1, description="triplets of every module; no module gets more rank")
    scale: float = Field(2.0, gt=0, description="alpha / r of the triplets, and of plans made of the scores")
    heads: tuple[str, ...] | None = Field(
        None, description="modules of which a copy trains whole beside the triplets; None: the head of a classifier"
    )


def probe_scores(
    scoring: ScoringInput, scoring_data: Iterable[Batch] | None, preset: str = DEFAULT_PRESET
) -> ImportanceScores:
    """Train triplets on the loader's batches, score their units on held-out ones, and take everything off the model again.

    As the search of I-LoRA: `steps` steps of AdamW with a linear schedule (6 % warm-up), gradients clipped to norm 1, the
    regulariser of the preset. After each step of the second half one batch of `scoring_data` is scored along the path; with
    preset `loss-per-parameter` a unit's score is its share of the held-out loss reduction, `-λ ∂L/∂λ` at a drawn α.

    It costs 1.5 times `steps` forward and backward passes, and a few forward passes for `loss_reduction`. With several processes
    each makes the whole training, on all batches: its steps follow one on the other, so there is nothing to share.

    Args:
        scoring: model, targets, training batches, `ProbeOptions`, seed. With the same seed and batches, the same scores.
        scoring_data: batches that are not trained on, passed through again and again.
        preset: of I-LoRA: what a unit's score is.

    Raises:
        RecipeError: no steps, learning rate or scoring data.
        DataError: data that can be passed through once, or that the model does not take.
        AdapterError: heads that are not there, or offloaded weights.
        TargetError: a model that is sharded.
        ScoresError: a loss or a score that is not finite, or an adapter without influence on the loss.

    Warns:
        LorankWarning: scoring examples that are trained on too, or a single batch of them; a held-out loss that became larger;
            triplets without influence on the loss.

    """
    options, began = scoring.chosen(ProbeOptions), time.perf_counter()
    choices = I_LORA.presets[preset]
    assert isinstance(choices, ScoringSetChoices)
    _check(options, scoring.batches, scoring_data)
    assert options.steps is not None
    assert scoring_data is not None
    if process_count() > 1:
        if is_sharded(scoring.model):
            raise TargetError(
                "method 'probe' trains triplets on layers that every process holds whole; score before the model is sharded"
            )
        processes()  # accelerate's state, which the path measure asks for
        scoring = replace(scoring, batches=whole_loader(scoring.needed_batches()))
    heads = _heads(scoring.model) if options.heads is None else options.heads
    batches = LoaderBatches(scoring_data, scoring.seed)
    warn_of_overlap(_rows_in(scoring_data), _rows_in(scoring.batches))
    with _own_streams(scoring.model, scoring.seed):
        placed = temporary_triplets(
            scoring.model, scoring.targets, rank=options.initial_rank, scale=options.scale, heads=heads
        )
        with placed as (adapter, trained):
            passed = _ProbePass(scoring)
            settings: Any = {"seed": scoring.seed, "loss_scale": passed.loss_scale}
            measure = ScoringSetPath(passed, adapter, choices, batches, divided=False, **settings)
            measure.try_batch()
            smoother = RunningSmoother(choices.smooth.accumulate, choices.smooth.ema_decay)
            schedule, _ = schedule_of(choices, options.steps, options.steps)
            for step in _training(scoring, passed, adapter, trained, choices.triplets.orthogonality):
                if measure.is_due(step, schedule, ready=smoother.ready):
                    smoother.add(measure.after_step(step, smoother.updates) or [])
            scores = by_module(smoother.scores()[0], adapter, options.steps)
            spread = smoother.standard_errors()
            errors = None if spread is None else by_module(spread[0], adapter, options.steps)
            measure.before_last_cut()
    if not any(values.any() for values in scores.values()):
        raise ScoresError(
            "every score is 0: the triplets have no influence on the held-out loss; look at labels, targets and learning rate"
        )
    if (measure.loss_reduction or 0.0) < 0:
        warnings.warn(
            f"the short training made the held-out loss larger, by {-(measure.loss_reduction or 0.0):.4g}: these scores are "
            "shares of nothing that was gained; give more steps, another learning_rate, or more training batches",
            LorankWarning,
            stacklevel=3,
        )
    provenance = {
        **scoring.provenance,
        **measure.provenance(),
        "choices": choices.model_dump(mode="json"),  # allocate ranks as the preset does
        "probe": {**options.model_dump(mode="json"), "heads": list(heads)},
        "scale": options.scale,
        "seed": scoring.seed,
        "scoring_batches": smoother.updates,
        "seconds": round(time.perf_counter() - began, 3),
    }
    found = ImportanceScores(scores, unit_costs(scoring.targets), errors, provenance)
    warn_of_dead_triplets(found)
    return found


class _ProbePass(TrainingPass):
    """The loss of a batch, in training and of the scoring set alike."""

    needed_for = "the probe"

    def __init__(self, scoring: ScoringInput) -> None:
        super().__init__(scoring.model)
        self._given = None if scoring.loss is summed_loss else scoring.loss
        half = is_narrow(scoring.model)
        self.loss_scale = HALF_LOSS_SCALE if half else 1.0

    def start(self) -> None:
        """Nothing is listened to: the training is our own."""

    def loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The loss that the model returns; or the mean over targets of the one that was given."""
        if self._given is None:
            return model_loss(model, inputs)
        total, counts = self._given(model, inputs)
        return total / counts.sum().clamp_min(1).to(total.device)


def _training(
    scoring: ScoringInput, passed: _ProbePass, adapter: Any, trained: Sequence[nn.Parameter], orthogonality: float
) -> Iterator[int]:
    """Train, and stop after each step, whose number is given, before gradients are cleared.

    Raises:
        ScoresError: a loss that is not finite.

    """
    options = scoring.chosen(ProbeOptions)
    assert options.steps is not None
    assert options.learning_rate is not None
    steps, model, scale = options.steps, scoring.model, passed.loss_scale
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    warmup = int(np.ceil(WARMUP * steps))
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    batches, losses = _again_and_again(scoring.needed_batches()), list[torch.Tensor]()
    for step in range(1, steps + 1):
        model.train()
        loss = passed.loss(model, on_device_of(model, next(batches)))
        (loss * scale).backward()
        losses.append(loss.detach())
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        add_orthogonality_gradient(adapter, orthogonality)
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        if step in (steps // 2, steps):
            bad = ~torch.isfinite(torch.stack(losses))
            if bool(bad.any()):  # looked at twice, so that a GPU need not wait at every step
                raise ScoresError(
                    f"the loss of the probe is not finite at step {step - len(losses) + 1 + int(bad.nonzero()[0])} of {steps}; "
                    "lower learning_rate, or look at the labels"
                )
            losses.clear()
        yield step
        optimizer.zero_grad()


def _again_and_again(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Its batches, from the first again after the last.

    Raises:
        DataError: it gives none, or none any more.

    """
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise DataError("the loader of method 'probe' gives no batch; give a DataLoader or a list of batches")


def _check(options: ProbeOptions, loader: Any, scoring_data: Any) -> None:
    """Refuse what is missing, before anything is done."""
    if scoring_data is None:
        raise RecipeError(
            "method 'probe' scores on examples that it does not train on: give scoring_data=, a loader of held-out batches (a "
            "tenth of the training data serves)"
        )
    if options.steps is None or options.learning_rate is None:
        missing = [key for key in ("steps", "learning_rate") if getattr(options, key) is None]
        raise RecipeError(
            f"method 'probe' needs {' and '.join(f'{key}=' for key in missing)}: it trains triplets for 15 to 30 % of the steps "
            "that the adapter will have, at a higher learning rate than LoRA's (2 to 5 times is a start)"
        )
    for name, data in (("the loader", loader), ("scoring_data", scoring_data)):
        if isinstance(data, Mapping):
            raise DataError(f"{name} is a single batch; give an iterable of batches, [batch] for one")
        if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
            raise DataError(
                f"{name} of method 'probe' is {type(data).__name__}; give a DataLoader or a list of batches"
            )
        if isinstance(data, Iterator):
            raise DataError(
                f"{name} of method 'probe' is {type(data).__name__}, which can be passed through only once; give a DataLoader "
                "or a list of batches"
            )
    if loader is scoring_data:
        raise RecipeError("scoring_data is the loader that is trained on; hold examples out, and give a loader of them")


def _rows_in(batches: Any) -> Any:
    """The examples of a loader's data set; those of a list of batches, one by one."""
    if not isinstance(batches, list | tuple):
        return getattr(batches, "dataset", None)
    if not all(isinstance(batch, Mapping) for batch in batches):
        return None  # refused when the model is called
    rows = []
    for batch in batches:
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor) and value.ndim}
        count = min((len(value) for value in tensors.values()), default=0)
        rows += [{key: value[number] for key, value in tensors.items()} for number in range(count)]
    return rows


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Modules beside the base model, unless they are a language model's own output: PEFT trains these whole by task type."""
    try:
        output = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        output = None
    return head_modules(model) if output is None else ()


@contextmanager
def _own_streams(model: nn.Module, seed: int) -> Iterator[None]:
    """Random streams of the seed alone; those of the caller are as before afterwards."""
    with random_streams(model):
        number = random.Random(f"{seed}/probe").getrandbits(32)
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)
        for index in RandomStreams.now(model).cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(number)
        yield
