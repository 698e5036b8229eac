"""What a starter recipe says, each choice with its reason."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import TaskType
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lorank.budget import Budget
from lorank.errors import DataError, RecipeError
from lorank.methods import METHODS
from lorank.methods.choose import choices_in
from lorank.methods.registry import unknown_method
from lorank.models.base_dtype import dtype_of_checkpoint
from lorank.models.base_size import base_parameters
from lorank.models.families import kind_of
from lorank.models.positions import longest_input
from lorank.starter.columns import LABELLED, TaskColumns
from lorank.starter.first_rows import Source
from lorank.starter.lengths import covering, lengths_of
from lorank.targets import find_targets, unit_costs
from lorank.tasks.section import SFT_COLUMNS

LONGEST = 2048  # tokens of an example, unless the user wants more
_STEP = 32  # examples in an optimizer step
# Of the examples of docs/recipe.md and docs/tasks.md.
_LORA_RATE = {"encoder": 5e-4, "decoder": 2e-4, "encoder-decoder": 2e-4}
_TRIPLET_RATE = 2e-3
_DECIDES = {
    "a scoring set": "ranks by scores on a part of the training data that is held out",
    "training batches": "ranks by scores of the batches that it trains on",
    "the frozen model": "ranks by scores of the frozen model, before training",
    "nothing": "equal ranks",
}


@dataclass(frozen=True)
class Choice:
    """A key of a section of the recipe, or of the recipe itself (section ""), its value, and why."""

    section: str
    name: str
    value: Any
    why: str

    @property
    def key(self) -> str:
        """As an override names it: `train.epochs`."""
        return f"{self.section}.{self.name}" if self.section else self.name


def check_fits(name: str, config: PreTrainedConfig, columns: TaskColumns) -> TaskType:
    """The kind of model that a task needs.

    Raises:
        DataError: the architecture cannot do it.

    """
    kind, task = kind_of(config), columns.task
    if task in LABELLED:
        return TaskType.SEQ_CLS
    if task in SFT_COLUMNS and kind != "decoder":
        raise DataError(
            f"{name} ({config.model_type}) is an {kind}, and the task {task} ({columns.why}) is for decoders, which continue a "
            f"text; give a decoder, or data for an {kind}"
        )
    if kind == "encoder":
        raise DataError(
            f"{name} ({config.model_type}) is an encoder, which writes no text, and the task is {task} ({columns.why}); give a "
            "model that writes, or a text and a label column (--text, --label)"
        )
    return TaskType.CAUSAL_LM if kind == "decoder" else TaskType.SEQ_2_SEQ_LM


@dataclass(frozen=True)
class Starter:
    """Everything that a starter recipe is made from.

    Attributes:
        name: of the model.
        config: of the model.
        model: of `load_without_weights`.
        tokenizer: None where there is none.
        source: the data.
        columns: the task.
        method: that decides the ranks.
        budget: as everywhere.

    """

    name: str
    config: PreTrainedConfig
    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    source: Source
    columns: TaskColumns
    method: str
    budget: str

    def choices(self) -> list[Choice]:
        """All keys of the recipe, in its order.

        Raises:
            DataError: a task without a test part, or rows that the task cannot take.
            BudgetError: a budget that cannot be read.

        """
        chosen = [
            Choice("model", "name", self.name, f"{self.config.model_type}, an architecture of the kind {self._kind}")
        ]
        chosen.append(self._dtype())
        chosen.append(Choice("", "method", self.method, _DECIDES[METHODS[self.method].looks_at]))
        chosen.append(
            Choice("", "budget", self.budget, "adapter parameters; lorank suggest says how much a task needs")
        )
        chosen += [*self._data(), *self._lengths(), *self._stages()]
        return chosen

    @property
    def _kind(self) -> str:
        return kind_of(self.config)

    @property
    def _is_sft(self) -> bool:
        return self.columns.task in SFT_COLUMNS

    def _dtype(self) -> Choice:
        stored = dtype_of_checkpoint(self.config)
        if stored == "fp16":
            return Choice(
                "model", "dtype", "bf16", "the checkpoint is in fp16, whose gradients would need a loss scale"
            )
        return Choice("model", "dtype", stored, "as the checkpoint's config says; adapters are fp32")

    def _data(self) -> Iterator[Choice]:
        source, columns = self.source, self.columns
        if not source.has_test and not self._is_sft:
            raise DataError(
                f"the task {columns.task} needs a test part, which is evaluated once at the end; give --test FILE"
            )
        for key, (value, why) in source.keys.items():
            if not (self._is_sft and key == "test_split" and source.has_validation):
                yield Choice("data", key, value, why)
        if self._is_sft and source.has_validation:
            yield Choice("data", "eval", "validation", "a split: the loss there is measured while it trains")
        elif self._is_sft:
            yield Choice("data", "eval", 0.05, "share of the training rows, held out for the loss while it trains")
        yield Choice("data", "task", columns.task, columns.why)
        if columns.text:
            text = columns.text[0] if len(columns.text) == 1 else list(columns.text)
            yield Choice(
                "data", "text", text, "column of the text" if len(columns.text) == 1 else "columns of the texts"
            )
            yield Choice("data", "label", columns.label, "column of the answer")
        if self._is_sft:
            yield Choice("data", "packing", False, "true: several examples in a row, faster where they are short")

    def _lengths(self) -> Iterator[Choice]:
        found = lengths_of(self.source.rows, self.columns, self.tokenizer)
        most = min(LONGEST, longest_input(self._reader()) or LONGEST)
        target = min(covering(found.targets), most // 2) if found.targets else 0
        if self._kind == "decoder":
            most -= target
        for key, lengths, value in (
            ("max_length", found.inputs, min(covering(found.inputs), most)),
            ("max_target_length", found.targets, target),
        ):
            if lengths:
                covered = sum(length <= value for length in lengths) / len(lengths)
                said = f"{covered:.0%} of the first {len(lengths):,} rows fit; the longest has {max(lengths):,} {found.unit}"
                yield Choice("data", key, value, said)

    def _reader(self) -> Any:
        """The part of the model that reads."""
        return self.model.get_encoder() if self._kind == "encoder-decoder" else self.model

    def _stages(self) -> Iterator[Choice]:
        method, lora = METHODS[self.method], _LORA_RATE[self._kind if self.columns.task not in LABELLED else "encoder"]
        preset = choices_in(method.default)
        fresh = getattr(preset.get("start"), "factors", None) == "fresh"
        epochs, rows = 1 if (self.source.count or 0) > 20_000 else 3, self.source.count
        kept = method.allocates_in_training and not fresh
        if method.allocates_in_training:
            yield self._initial_rank()
            every, steps = getattr(preset.get("measure"), "every", 1), epochs * math.ceil((rows or 0) / self._step)
            if 0 < steps < 10 * every and (fewer := max(1, steps // 20)) < every:
                why = f"steps from one that is scored to the next: there are only {steps} in all"
                yield Choice("measure", "every", fewer, why)
        if self.method != "lora":
            own = {"lora": {"train": {"learning_rate": lora}}} if kept else ["lora"]
            yield Choice("", "baselines", own, "uniform LoRA of the same size, trained and evaluated beside it")
        if method.allocates_in_training and fresh:
            yield Choice(
                "search", "learning_rate", _TRIPLET_RATE, "of the first stage, whose triplets need a larger rate"
            )
        yield Choice("train", "epochs", epochs, "times through the data" + (f", {rows:,} rows" if rows else ""))
        yield from self._batches()
        rate = _TRIPLET_RATE if kept else lora
        yield Choice(
            "train", "learning_rate", rate, "to start with; lorank suggest and lorank compare --search try others"
        )

    def _initial_rank(self) -> Choice:
        budget, targets = Budget.parse(self.budget), find_targets(self.model)
        costs = unit_costs(targets)
        if budget.counts_units:
            return Choice("triplets", "initial_rank", 8, "in every module; the budget is a share of these")
        size = {"base_parameters": base_parameters(self.model), "initial_rank": 8}
        mean = budget.parameters(costs, **size) / sum(costs.values())
        most = max(target.max_rank for target in targets)
        rank = min(max(2, math.ceil(2 * mean)), most)
        return Choice("triplets", "initial_rank", rank, "in every module; about twice the mean rank of the budget")

    @property
    def _step(self) -> int:
        """Examples of an optimizer step: fewer where there would be less than 20 steps in an epoch."""
        step, count = _STEP, self.source.count or math.inf
        while step > 4 and count / step < 20:
            step //= 2
        return step

    def _batches(self) -> Iterator[Choice]:
        step, count = self._step, self.source.count or math.inf
        usual = 4 if self._is_sft else 32 if self.columns.task in LABELLED else 8
        batch = min(usual, step)
        why = f"{step} in an optimizer step" + (f": there are only {count:,} rows" if step < _STEP else "")
        yield Choice("train", "batch_size", batch, f"examples side by side; {why}")
        yield Choice(
            "train", "gradient_accumulation", step // batch, f"batches in an optimizer step of {step} examples"
        )


def check_method(method: str) -> None:
    """Refuse an unknown method.

    Raises:
        RecipeError: there is no such method.

    """
    if method not in METHODS:
        raise RecipeError(f"--method: {unknown_method(method)}")
