"""What is asked about a training that has not begun."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from lorank.budget import Budget
from lorank.errors import RecipeError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.methods.choose import preset_of
from lorank.methods.registry import unknown_method
from lorank.validation import Section, explain

Precision = Literal["fp32", "bf16", "fp16"]


class Question(Section):
    """A training, as far as its memory and its passes depend on it."""

    budget: str = Field(description="adapter parameters of the finished adapter, as recipes write it")
    method: str = Field("lora", description="a method of lorank")
    preset: str | None = Field(None, description="of the method; null: its default")
    initial_rank: int | None = Field(None, ge=1, description="triplets of every module at the start")
    batch: int = Field(8, ge=1, description="examples in a micro-batch, on each device")
    seq: int = Field(2048, ge=2, description="tokens of an example, padding included")
    target_seq: int | None = Field(None, ge=2, description="tokens of an encoder-decoder's target; null: as seq")
    dtype: Precision | None = Field(None, description="of the base model; null: as its config says, or fp32")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="of the base model, by bitsandbytes")
    modules_to_save: tuple[str, ...] | None = Field(
        None, description="names of modules, or their ends, that train whole beside the adapters; heads do in any case"
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD without momentum")
    gradient_checkpointing: bool = Field(False, description="keep the inputs of blocks alone")
    gpus: int = Field(1, ge=1, description="devices, each with a batch of its own")
    shard: Literal["none", "fsdp", "zero3"] = Field("none", description="how the base is spread over devices")
    steps: int = Field(1000, ge=1, description="optimizer steps of the adapter that is served")
    epochs: float = Field(3.0, gt=0, description="times through the data in these steps")
    scoring_batch: int | None = Field(None, ge=1, description="examples in a scoring batch; null: as batch")
    examples: int = Field(256, ge=1, description="calibration examples of a method that scores before training")

    @property
    def scored_at_once(self) -> int:
        """Examples in a scoring or calibration batch."""
        return self.scoring_batch or self.batch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one time through the data, at least 1."""
        return max(1, round(self.steps / self.epochs))


def read_question(values: Mapping[str, Any]) -> Question:
    """Check everything that needs no model, and say all that is wrong at once.

    Args:
        values: of the fields of `Question`; those that are None are left out.

    Raises:
        RecipeError: a bad value, an unknown method or preset, or choices that contradict each other.
        BudgetError: the budget cannot be read.

    """
    findings, given = Findings(), {key: value for key, value in values.items() if value is not None}
    question = None
    try:
        question = Question(**given)
    except ValidationError as error:
        for line in explain(error, Question).splitlines():
            findings.errors.append(RecipeError(line))
    with findings.check():
        Budget.parse(given.get("budget", ""))
    with findings.check():
        name = str(given.get("method", "lora"))
        if name not in METHODS:
            raise RecipeError(unknown_method(name))
        preset_of(METHODS[name], given.get("preset"))
    shard, gpus = given.get("shard", "none"), given.get("gpus", 1)
    with findings.check():
        if shard in ("fsdp", "zero3") and gpus == 1:
            raise RecipeError(f"shard: {shard} spreads the base over devices, and gpus is 1; give gpus of 2 or more")
    with findings.check():
        if shard == "zero3" and given.get("quantization"):
            raise RecipeError(
                "shard: zero3 cannot spread a base that bitsandbytes has quantised; use shard: fsdp with quantization: 4bit, or "
                "no quantization"
            )
    with findings.check():
        if shard == "fsdp" and given.get("quantization") == "8bit":
            raise RecipeError("shard: fsdp cannot spread a base in 8 bits; use quantization: 4bit, or no quantization")
    findings.raise_all()
    assert question is not None
    return question
