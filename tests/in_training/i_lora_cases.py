"""What the tests of I-LoRA in a Trainer share: a short stage, scoring examples, an allocation."""

from typing import Any

import torch
from datasets import Dataset

from lorank import RankAllocation

STAGE: dict[str, Any] = {"max_steps": 8, "save_steps": 3, "logging_steps": 1}


def examples(count: int = 32, seed: int = 7) -> Dataset:
    ids = torch.randint(5, 21, (count, 8), generator=torch.Generator().manual_seed(seed))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids == 7).any(1).long().tolist()})


def i_lora(scoring_data: Any = None, **options: Any) -> RankAllocation:
    if scoring_data is None and options.get("source") != "training":
        scoring_data = examples()
    return RankAllocation("i-lora", "r=2", scoring_data=scoring_data, **{"preset": "paper", **options})


def adapter_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
