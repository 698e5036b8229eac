"""SentenceTransformerTrainer: the model has its adapter inside, and a loss module of its own holds the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from tests.conftest import BAD, GOOD
from transformers import set_seed

from lorank import RankAllocation
from lorank.errors import AdapterError, LorankWarning, TrainingError

# BERT's pooler is not in the output of a SentenceTransformer, which takes the mean of the tokens.
LORA: dict[str, Any] = {"r": 4, "target_modules": ["query", "value", "dense"], "exclude_modules": ["pooler.dense"]}
TEXTS = ["the day was warm", "the house looked cold and grim"]
PAIRS = [{"anchor": f"the day was {GOOD[k % 4]}", "positive": f"{BAD[k % 3]} was the house"} for k in range(32)]

HELD_OUT = [
    {"anchor": f"was the house {word}", "positive": f"the day looked rather {word}"} for word in (*GOOD, *BAD) * 2
]


def embedder(base: Path, way: str = "add_adapter", **options: Any) -> SentenceTransformer:
    set_seed(0)
    model = SentenceTransformer(str(base), device="cpu")
    if way == "add_adapter":
        model.add_adapter(LoraConfig(**{**LORA, **options}))
    elif way == "get_peft_model":
        model[0].model = get_peft_model(model[0].model, LoraConfig(**LORA))
    return model


def trainer_of(
    model: SentenceTransformer, folder: Path, loss: type = MultipleNegativesRankingLoss, **options: Any
) -> SentenceTransformerTrainer:
    usual: dict[str, Any] = {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "save_steps": 3}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    arguments = SentenceTransformerTrainingArguments(str(folder), **{**usual, **quiet, **options})
    held_out = {"scoring": Dataset.from_list(HELD_OUT)}
    return SentenceTransformerTrainer(
        model, arguments, train_dataset=Dataset.from_list(PAIRS), eval_dataset=held_out, loss=loss(model)
    )


def check_saved(model: SentenceTransformer, allocation: RankAllocation, base: Path, folder: Path) -> None:
    """What is saved is the plan's LoRA, which sentence-transformers and plain PEFT read with difference 0."""
    model.save_pretrained(str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == allocation.plan.spent
    wanted = model.encode(TEXTS)
    assert np.array_equal(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), wanted)
    plain = embedder(base, "none")
    assert not np.allclose(plain.encode(TEXTS), wanted, atol=1e-3)
    plain[0].model = PeftModel.from_pretrained(plain[0].model, str(folder))
    assert np.array_equal(plain.encode(TEXTS), wanted)


@pytest.mark.parametrize("way", ["add_adapter", pytest.param("get_peft_model", marks=pytest.mark.long)])
def test_ranks_of_a_sentence_transformer(way: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Scored by the loss module; a training that was stopped goes on bit for bit."""
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        model = embedder(tiny_folder, way)
        trainer = trainer_of(model, tmp_path)
        allocation = RankAllocation("igu-lora", "r=2", every=1).attach(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append((allocation.plan.ranks, model.encode(TEXTS)))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])
    check_saved(model, allocation, tiny_folder, tmp_path / "final")


@pytest.mark.long
def test_best_model_and_a_scoring_set(tiny_folder: Path, tmp_path: Path) -> None:
    model = embedder(tiny_folder)
    evaluated = {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "eval_scoring_loss"}
    trainer = trainer_of(model, tmp_path / "best", load_best_model_at_end=True, **evaluated)
    allocation = RankAllocation("adalora", "r=2").attach(trainer)
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    check_saved(model, allocation, tiny_folder, tmp_path / "best" / "final")
    model = embedder(tiny_folder)
    first = trainer_of(model, tmp_path / "search")
    allocation = RankAllocation("i-lora", "r=2", scoring_data="scoring").attach(first)
    first.train()
    trainer_of(model, tmp_path / "train").train()
    check_saved(model, allocation, tiny_folder, tmp_path / "train" / "final")


def test_what_sentence_transformers_cannot_be_scored_by(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(embedder(tiny_folder), tmp_path, CachedMultipleNegativesRankingLoss)
    with pytest.raises(TrainingError, match=r"CachedMultipleNegativesRankingLoss .* estimator='training-pass'"):
        RankAllocation("igu-lora", "r=2").attach(trainer)
    with pytest.raises(TrainingError, match="method='adalora'"):
        RankAllocation("i-lora", "r=2", scoring_data="scoring").attach(trainer)
    with pytest.raises(AdapterError, match=r"SentenceTransformer has no adapters.*model\.add_adapter\("):
        RankAllocation("adalora", "r=2").attach(trainer_of(embedder(tiny_folder, "none"), tmp_path))
    model = embedder(tiny_folder, exclude_modules=None)
    trainer = trainer_of(model, tmp_path, CachedMultipleNegativesRankingLoss)
    allocation = RankAllocation("adalora", "r=2").attach(trainer)  # scored by training's own gradients
    with pytest.warns(LorankWarning, match=r"exactly 0 for 4 of 44 triplets, .*: pooler\.dense \(4 of 4\)"):
        trainer.train()
    assert 0 < allocation.plan.spent <= allocation.plan.budget_parameters
