"""What stages of training need of a run, as values: checked before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel, TaskType
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained
from lorank.models.task_model import TaskModel
from lorank.targets import Target
from lorank.tasks.data import TaskData
from lorank.tasks.encoding import tokenize
from lorank.tasks.evaluation import evaluate
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.general_text import general_losses
from lorank.tasks.section import EVAL, GENERAL_TEXT, DataSection
from lorank.tasks.sft_rows import packed

_SHUFFLED_AT_A_TIME = 1000  # rows of a stream that are mixed with each other


@dataclass(frozen=True)
class StageSettings:
    """What all stages of a run have in common.

    Attributes:
        seed: of every draw.
        scale: alpha / r of every adapter at the start.
        lora_dropout: in front of the adapters.
        precision: of the forward pass: fp32, bf16 or fp16.
        gradient_checkpointing: less memory, more time.
        group_by_length: batches of similar length.
        checkpoint_every: optimizer steps between checkpoints.
        log_every: optimizer steps between logged losses.
        report_to: as transformers names loggers.

    """

    seed: int
    scale: float
    lora_dropout: float
    precision: str
    gradient_checkpointing: bool
    group_by_length: bool
    checkpoint_every: int
    log_every: int
    report_to: str


@dataclass(frozen=True)
class Prepared:
    """The base model, the data and the settings of a run; the options of a stage (a `TrainingSection`) are not in it.

    Attributes:
        base: which model.
        task_type: of the model: a classifier, an encoder-decoder or a decoder.
        tokenizer: of the base model.
        section: where the data come from, what the task is, where texts are cut.
        data: training and test part.
        metrics: names; None: those that are usual for the task.
        targets: what is adapted.
        settings: what all stages have in common.
        provenance: what scores and plan carry.

    """

    base: Pretrained
    task_type: TaskType
    tokenizer: PreTrainedTokenizerBase
    section: DataSection
    data: TaskData
    metrics: tuple[str, ...] | None
    targets: tuple[Target, ...]
    settings: StageSettings
    provenance: Mapping[str, Any]

    def load_model(self) -> TaskModel:
        """The base model with its head; the random state is set by the seed first, so that a new head is the same each time.

        Raises:
            RecipeError: as `load_task_model`.

        """
        set_seed(self.settings.seed)
        return load_task_model(self.base, self.task_type, self.data.label_names)

    def tokenize(self, rows: Dataset) -> Dataset:
        """Examples as tokens, not padded; as `lorank.tasks.encoding.tokenize`."""
        return tokenize(rows, self.tokenizer, self.section, self.task_type)

    def stage_rows(self, rows: Dataset) -> Dataset | IterableDataset:
        """What a stage trains on: `training_rows`, or where the recipe streams, the stream in place of these rows."""
        if self.data.stream is None:
            return self.training_rows(rows)
        return self.data.stream.shuffle(seed=self.settings.seed, buffer_size=_SHUFFLED_AT_A_TIME)

    def training_rows(self, rows: Dataset) -> Dataset:
        """Examples as tokens, packed into longer rows where the recipe says so."""
        tokens = self.tokenize(rows)
        return packed(tokens, self.section) if self.section.packing else tokens

    def like_training(self, rows: Dataset) -> Dataset:
        """Examples as tokens, one in a row, with the columns that packed training rows have."""
        tokens = self.tokenize(rows)
        if self.section.packing:
            tokens = tokens.add_column("seq_lengths", [[length] for length in tokens["length"][:]])
        return tokens.remove_columns("length")

    def evaluate(self, model: nn.Module, directory: Path) -> tuple[dict[str, float | None], float | None]:
        """Metrics and mean loss on the test part, as `lorank.tasks.evaluation.evaluate`; none where there is no such part."""
        if self.data.test is None:
            return {}, None
        return evaluate(model, self.data, self.tokenizer, self._evaluation_settings, directory)

    @property
    def _evaluation_settings(self) -> EvaluationSettings:
        precision, new = self.settings.precision, self.new_tokens
        return EvaluationSettings(self.section, self.task_type, self.metrics, precision, new_tokens=new)

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """Tokens that the recipe adds to the tokenizer."""
        return tuple(self.base.new_tokens or ())

    def evaluate_more(self, model: nn.Module, directory: Path) -> dict[str, dict[str, Any]]:
        """Name of each further part, `eval` and general text among them -> its `metrics` and `loss`."""
        found = {}
        evaluated = {} if self.data.eval is None else {EVAL: self.data.eval}
        for name, rows in {**evaluated, **self.data.more}.items():
            part = replace(self, data=replace(self.data, test=rows))
            metrics, loss = part.evaluate(model, directory / name)
            found[name] = {"metrics": metrics, "loss": loss}
        if self.section.general_text is not None:
            base = None if isinstance(model, PeftModel) else self.load_model().model
            found[GENERAL_TEXT] = general_losses(model, base, self.tokenizer, self._evaluation_settings, directory)
        return found
