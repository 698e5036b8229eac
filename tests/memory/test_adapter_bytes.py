"""Bytes of what trains, against real tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.memory.conftest import real_model

from lorank.adapter.convert import to_triplets
from lorank.budget import Budget
from lorank.errors import BudgetError, RecipeError
from lorank.memory.adapter_bytes import trained_parameters
from lorank.models.base_dtype import train_in_fp32
from lorank.models.loading import load_without_weights
from lorank.models.trained_whole import train_copies_in_fp32
from lorank.targets import find_targets


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dtype", "whole"),
    [("bert", "fp32", None), ("bert", "bf16", None), ("llama", "bf16", None), ("llama", "bf16", ["embed_tokens"])],
)
def test_parameters_and_optimizer_are_those_of_a_real_step(
    kind: str, dtype: str, whole: list[str] | None, config_folder: Callable[[str], str]
) -> None:
    folder = config_folder(kind)
    meta = load_without_weights(folder)
    targets, torch_dtype = find_targets(meta), {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    found = trained_parameters(
        meta, targets, Budget.parse("r=2"), triplets=True, initial_rank=6,
        modules_to_save=whole,
    )  # fmt: skip
    config = LoraConfig(
        r=6,
        target_modules=[target.name for target in targets],
        modules_to_save=["classifier"] if kind == "bert" else whole,
    )
    base = real_model(folder, meta, torch_dtype)
    train_in_fp32(base, ["classifier"] if kind == "bert" else [])
    model: Any = get_peft_model(base, config)
    train_copies_in_fp32(model)
    to_triplets(model, "default")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(p.numel() * p.element_size() for p in trained) == found.trained_bytes(found.initial_parameters)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [tensor for held in optimizer.state.values() for tensor in held.values()]
    assert sum(t.numel() * t.element_size() for t in state) == found.optimizer_bytes(found.initial_parameters, "adamw")
    assert sum(p.grad.numel() * p.grad.element_size() for p in trained) == found.trained_bytes(found.initial_parameters)
    assert found.optimizer_bytes(found.initial_parameters, "sgd") == 0


def test_the_initial_rank_is_above_what_the_budget_pays_for(config_folder: Callable[[str], str]) -> None:
    meta = load_without_weights(config_folder("llama"))
    targets = find_targets(meta)
    options: Any = {"triplets": True}
    ranks = [
        max(trained_parameters(meta, targets, Budget.parse(b), initial_rank=None, **options).initial_ranks.values())
        for b in ("r=2", "r=8")
    ]
    assert ranks == [8, 12]
    with pytest.raises(BudgetError, match="raise the initial rank"):
        trained_parameters(meta, targets, Budget.parse("r=8"), initial_rank=4, **options)
    with pytest.raises(RecipeError, match="q_proj' would be trained whole"):
        trained_parameters(meta, targets, Budget.parse("r=2"), initial_rank=4, modules_to_save=["q_proj"], **options)
