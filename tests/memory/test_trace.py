"""What the meta device says is saved, against what autograd saves on the CPU."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.memory.conftest import CONFIGS, real_model

from lorank.adapter.triplet import triplet_config
from lorank.memory.inspection import inspect_model
from lorank.memory.question import read_question
from lorank.memory.trace import id_of, inputs_of
from lorank.models.loading import load_without_weights
from lorank.targets import find_targets


def ungrouped(attend: Any) -> Any:
    """Attention whose heads have keys of their own: for grouped ones torch 2.8 picks a kernel that keeps all weights."""

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *more: Any, **options: Any) -> Any:
        if options.pop("enable_gqa", False):
            times = query.size(-3) // key.size(-3)
            key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
        return attend(query, key, value, *more, **options)

    return attention


def grouped(inputs: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """Each expert on its own rows: which kernel transformers picks for them depends on torch."""
    parts = inputs.tensor_split(offs[:-1].cpu().long())
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])


def saved_on_cpu(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes of the storages that are saved, those of weights and buffers left out."""
    known = {id_of(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        if id_of(tensor) not in known:
            known[id_of(tensor)] = tensor
            total += tensor.untyped_storage().nbytes()
        return tensor

    name = "torch.nn.functional.scaled_dot_product_attention"
    plain = ungrouped(torch.nn.functional.scaled_dot_product_attention)
    experts = patch("transformers.integrations.moe._grouped_mm", grouped)
    with patch(name, plain), experts, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, use_cache=False) if "bert" not in type(model.get_base_model()).__name__.lower() else model(
            **inputs
        )
    return total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "igu-lora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_saved_tensors_are_those_of_a_real_pass(
    kind: str, dtype: str, method: str, config_folder: Callable[[str], str]
) -> None:
    folder = config_folder(kind)
    meta = load_without_weights(folder)
    targets = find_targets(meta)
    question = read_question(
        {"budget": "r=2", "method": method, "initial_rank": 4, "batch": 2, "seq": 48, "dtype": dtype}
    )
    real = real_model(folder, meta, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    found = inspect_model(meta, targets, question)
    assert found.activations.traced
    config = LoraConfig(r=4 if method == "igu-lora" else 2, target_modules=[target.name for target in targets])
    model = get_peft_model(real, triplet_config(config) if method == "igu-lora" else config).train()
    for head in (found.trained.head_parameters and ["classifier"]) or ():
        real.get_submodule(head).requires_grad_(True)
    inputs = {
        key: torch.zeros(tensor.shape, dtype=tensor.dtype) + (5 if key == "input_ids" else 0)
        for key, tensor in inputs_of(meta, 2, 48, 48).items()
    }
    measured = saved_on_cpu(model, inputs)
    assert found.activations.saved == pytest.approx(measured, rel=0.15), (found.activations.saved, measured)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradient_checkpointing_keeps_inputs_of_blocks(kind: str, config_folder: Callable[[str], str]) -> None:
    folder = config_folder(kind)
    meta = load_without_weights(folder)
    targets, real = find_targets(meta), real_model(folder, meta)
    asked = {"budget": "r=2", "batch": 2, "seq": 48, "dtype": "fp32", "gradient_checkpointing": True}
    found = inspect_model(meta, targets, read_question(asked)).activations
    assert found.traced
    model = get_peft_model(real, LoraConfig(r=2, target_modules=[target.name for target in targets])).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = {key: torch.zeros(t.shape, dtype=t.dtype) + 1 for key, t in inputs_of(meta, 2, 48, 48).items()}
    held = found.saved - found.in_blocks + found.block_inputs
    assert held == pytest.approx(saved_on_cpu(model, inputs), rel=0.15)
    assert found.peak(checkpointing=True) == held + max(found.logits_gradient, found.largest_block)


def test_a_model_that_looks_at_values_has_an_estimate(
    config_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    question = read_question({"budget": "r=2", "batch": 2, "seq": 48})
    meta = load_without_weights(config_folder("llama"))
    traced = inspect_model(meta, find_targets(meta), question)
    monkeypatch.setattr("lorank.memory.activations.trace", fail)
    meta = load_without_weights(config_folder("llama"))
    found = inspect_model(meta, find_targets(meta), question)
    assert (traced.activations.traced, found.activations.traced) == (True, False)
    assert 0.3 < found.activations.saved / traced.activations.saved < 3
    assert "rough formula" in found.notes[0]
