"""Everything that is said about a training before it begins, put together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorank.budget import Budget
from lorank.findings import Findings
from lorank.memory.activations import Activations, activations
from lorank.memory.adapter_bytes import FP32, Trained, trained_parameters
from lorank.memory.base_bytes import QuantisedBase, base_bytes, in_dtype, module_bytes, quantised
from lorank.memory.passes import Passes, extra_passes
from lorank.memory.question import Question
from lorank.memory.score_state import ScoreState, score_state
from lorank.memory.untouched import ADAPTED_EXPERTS, parameters_by_kind
from lorank.methods import METHODS
from lorank.methods.choose import check_experts
from lorank.models.base_dtype import DTYPES, dtype_of_checkpoint
from lorank.targets import Target


@dataclass(frozen=True)
class Inspection:
    """What a training will need.

    Attributes:
        question: what was asked.
        model_class: name of the class that is trained.
        dtype: of the base.
        base: "fp32", "bf16", "fp16", "8bit" and "4bit" -> bytes of the base on one device that holds all of it.
        quantised: the base as it is asked for, where that is quantised.
        gathered: bytes of the largest part of the base that a device gathers at a time, where it is sharded.
        parameters: kind of parameter -> number, see `parameters_by_kind`.
        trained: adapters and heads.
        state: of the scores.
        activations: of a micro-batch.
        passes: beside those of training.
        notes: what limits these numbers.

    """

    question: Question
    model_class: str
    dtype: str
    base: dict[str, int]
    quantised: QuantisedBase | None
    gathered: int
    parameters: dict[str, int]
    trained: Trained
    state: ScoreState
    activations: Activations
    passes: Passes
    notes: list[str] = field(default_factory=list)

    @property
    def base_of_device(self) -> int:
        """Of the base on each device: all of it, or a share and the part that is gathered.

        What tells how to read packed weights is no parameter, and is not shared out.
        """
        if self.question.shard == "none":
            return self._whole_base
        apart = 0 if self.quantised is None else self.quantised.overhead
        return -(-(self._whole_base - apart) // self.question.gpus) + apart + self.gathered

    @property
    def loading_peak(self) -> int:
        """The most of a device while a quantised base is loaded, whole on each, before it is sharded; 0 where that is not so."""
        return self._whole_base if self.quantised is not None and self.question.shard != "none" else 0

    @property
    def _whole_base(self) -> int:
        return self.base[self.question.quantization or self.dtype]

    @property
    def training_peak(self) -> int:
        """The most of a device in training, scoring of training batches included."""
        held = self._held(self.trained.initial_parameters)
        own = 0 if self.state.before_training else self.state.kept
        return held + own + max(self._activations(1.0), 0 if self.state.before_training else self._scoring())

    @property
    def scoring_peak(self) -> int:
        """The most of a device before training, of methods that score then; 0 of others."""
        if not self.state.before_training or not self.passes.scored_batches:
            return 0
        return self.base_of_device + self.state.kept + self._scoring()

    @property
    def peak(self) -> int:
        """The most of a device at any time."""
        return max(self.training_peak, self.scoring_peak, self.loading_peak)

    @property
    def plain_peak(self) -> int:
        """The most of a device that plain LoRA of the same budget needs, with the activations of this one."""
        return max(self._held(self.trained.final_parameters) + self._activations(1.0), self.loading_peak)

    def _held(self, parameters: int) -> int:
        trains = self.trained.trained_bytes(parameters)
        optimizer = self.trained.optimizer_bytes(parameters, self.question.optimizer)
        return self.base_of_device + 2 * trains + optimizer  # weights and gradients

    def _activations(self, share: float) -> int:
        return int(share * self.activations.peak(checkpointing=self.question.gradient_checkpointing))

    def _scoring(self) -> int:
        """Of a batch that is scored; a pass without gradients keeps nothing for later."""
        if not self.passes.scoring:
            return self.state.moment
        return self._activations(self.question.scored_at_once / self.question.batch) + self.state.moment

    def to_json(self) -> dict[str, Any]:
        """Every number, with its unit in its key."""
        trained, held, optimizer = self.trained, self.activations, self.question.optimizer
        total = sum(self.parameters.values())
        checkpointing = self.question.gradient_checkpointing
        question = self.question.model_dump(
            mode="json", exclude={"batch", "seq", "target_seq", "steps", "scoring_batch"}
        )
        return {
            "asked": {
                **{_with_unit(key): value for key, value in question.items()},
                "batch_examples": self.question.batch,
                "sequence_tokens": self.question.seq,
                "target_sequence_tokens": self.question.target_seq or self.question.seq,
                "optimizer_steps": self.question.steps,
                "scoring_batch_examples": self.question.scored_at_once,
            },
            "model_class": self.model_class,
            "base_dtype": self.dtype,
            "base_bytes_by_dtype": {f"{name}_bytes": size for name, size in self.base.items()},
            "quantised_layers_count": 0 if self.quantised is None else len(self.quantised.layers),
            "not_quantised_linear_layers": [] if self.quantised is None else list(self.quantised.kept),
            "quantisation_overhead_bytes": 0 if self.quantised is None else self.quantised.overhead,
            "parameters_by_kind": {
                kind: {"parameters_count": number, "share_percent": 100 * number / total}
                for kind, number in self.parameters.items()
            },
            "initial_units_of_rank_count": trained.units,
            "initial_adapter_parameters_count": trained.initial_parameters,
            "final_adapter_parameters_count": trained.final_parameters,
            "head_parameters_count": trained.head_parameters,
            "initial_adapter_bytes": FP32 * trained.initial_parameters,
            "final_adapter_bytes": FP32 * trained.final_parameters,
            "head_copy_bytes": trained.head_bytes,
            "gradient_bytes": trained.trained_bytes(trained.initial_parameters),
            "optimizer_state_bytes": trained.optimizer_bytes(trained.initial_parameters, optimizer),
            "score_state_bytes": self.state.kept,
            "scoring_moment_bytes": self.state.moment,
            "activation_bytes": held.peak(checkpointing=checkpointing),
            "saved_tensors_bytes": held.saved,
            "activation_with_checkpointing_bytes": held.peak(checkpointing=True),
            "activation_without_checkpointing_bytes": held.peak(checkpointing=False),
            "logits_bytes": held.logits,
            "activations_traced": held.traced,
            "search_steps_count": self.passes.search_steps,
            "scored_batches_count": self.passes.scored_batches,
            "scoring_passes_count": self.passes.scoring,
            "forward_only_passes_count": self.passes.forward_only,
            "further_backward_passes_count": self.passes.further_backward,
            "passes_exact": self.passes.exact,
            "base_on_device_bytes": self.base_of_device,
            "gathered_bytes": self.gathered,
            "loading_peak_on_device_bytes": self.loading_peak,
            "training_peak_on_device_bytes": self.training_peak,
            "scoring_peak_on_device_bytes": self.scoring_peak,
            "peak_on_device_bytes": self.peak,
            "plain_lora_peak_on_device_bytes": self.plain_peak,
            "memory_overhead_percent": 100 * (self.peak - self.plain_peak) / self.plain_peak,
            "passes_overhead_percent": self.passes.overhead(self.question),
            "notes": self.notes,
        }


_UNITS = {"initial_rank": "initial_rank_units", "gpus": "gpus_count", "examples": "calibration_examples_count"}


def _with_unit(key: str) -> str:
    return _UNITS.get(key, "epochs_count" if key == "epochs" else key)


def inspect_model(model: nn.Module, targets: Sequence[Target], question: Question) -> Inspection:
    """Work out what a training needs. Changes the model: adapters are on it afterwards.

    Args:
        model: of `load_without_weights`.
        targets: of `find_targets`.
        question: of `read_question`.

    Raises:
        BudgetError: a budget that this model cannot honour.
        RecipeError: a method that gives no ranks to experts, which are among the targets.
        AllocationError: the run is too short for the method. With more than one finding, `SeveralFindings`.

    """
    any_model: Any = model
    findings, allocates = Findings(), METHODS[question.method].allocates_in_training
    if any(target.experts for target in targets):
        check_experts(question.method, None)
    dtype = question.dtype or dtype_of_checkpoint(any_model.config)
    in_dtype(model, "fp32")  # accelerate's count never widens what it is given
    shapes = {target.name: (target.d_in, target.d_out) for target in targets}
    trained = passes = state = None
    with findings.check():
        trained = trained_parameters(
            model, targets, Budget.parse(question.budget), triplets=allocates, initial_rank=question.initial_rank,
            modules_to_save=question.modules_to_save,
        )  # fmt: skip
    with findings.check():
        passes = extra_passes(question, list(shapes))
        if trained is not None:
            state = score_state(question, trained, shapes)
    findings.raise_all()
    assert trained is not None
    assert passes is not None
    assert state is not None
    in_bits = {bits: quantised(model, bits, dtype if dtype != "fp32" else "bf16") for bits in ("8bit", "4bit")}
    if question.quantization:
        in_bits[question.quantization] = quantised(model, question.quantization, dtype)
    base = {name: base_bytes(model, name) for name in DTYPES} | {bits: one.bytes for bits, one in in_bits.items()}
    kinds = parameters_by_kind(model, targets)
    gathered = _gathered(model, dtype) if question.shard != "none" else 0
    found = activations(model, targets, question, trained, dtype, triplets=allocates)
    chosen = in_bits[question.quantization] if question.quantization else None
    notes = _notes(question, chosen, kinds, found, passes, allocates=allocates)
    if found.merged_experts:
        notes.append(
            "PEFT adds ΔW to whole tensors of experts in the forward pass: copies that last until the backward pass"
        )
    return Inspection(
        question, type(model).__name__, dtype, base, chosen, gathered, kinds, trained, state, found, passes, notes
    )  # fmt: skip


def _gathered(model: nn.Module, dtype: str) -> int:
    """Of the largest part that is gathered at a time: a block, or everything that is in no block."""
    sizes = module_bytes(model, dtype)
    split = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [sizes[name] for name, module in model.named_modules() if type(module).__name__ in split]
    return int(max(sizes[""] - sum(blocks), *blocks, 0))


def _notes(
    question: Question,
    chosen: QuantisedBase | None,
    kinds: dict[str, int],
    found: Activations,
    passes: Passes,
    *,
    allocates: bool,
) -> list[str]:
    notes = []
    if not found.traced:
        notes.append("this model's forward pass cannot be traced without weights: activations are by a rough formula")
    if allocates and question.shard == "fsdp":
        notes.append(
            f"{question.method} with FSDP needs version 2: the base is sharded, and what trains is whole on every device"
        )
    if chosen is not None and question.shard == "fsdp":
        notes.append(
            "every device loads the whole quantised base before FSDP shards it; and without lorank, accelerate leaves weights in "
            "bitsandbytes' default storage whole"
        )
    if allocates and question.shard == "zero3":
        notes.append(
            f"{question.method} needs the adapter's gradients on every device, which ZeRO-3 does not keep: train with DDP or "
            "--shard fsdp, or allocate first and train the plan with ZeRO-3"
        )
    if chosen is not None and {"experts", ADAPTED_EXPERTS} & set(kinds):
        notes.append("experts that are one tensor for all of them are not quantised by bitsandbytes")
    if "vision towers" in kinds or "audio towers" in kinds:
        notes.append(
            "activations of towers are not counted: the batch is of tokens, those of images and sounds included"
        )
    if not passes.exact:
        notes.append("with intervals: auto the number of passes depends on the data; this is the least")
    return notes
