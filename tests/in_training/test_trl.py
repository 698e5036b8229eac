"""TRL's trainers make the adapter themselves, from `peft_config`, and most of them compute a loss of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tests.in_training.trl_cases import trl_trainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from lorank import RankAllocation
from lorank.errors import TrainingError
from lorank.in_training.trainer_pass import TrainerPass

trl = pytest.importorskip("trl")


def llama() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=64, pad_token_id=0, **sizes))


@pytest.mark.parametrize("method", ["igu-lora", "adalora"])
def test_one_callback_in_sft_trainer(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["the day was fine and warm", "the house looked cold and grim"] * 20})
    arguments = trl.SFTConfig(
        str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_length=16,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_steps=4,
        logging_steps=4,
    )
    allocation = RankAllocation(method, "r=2", begin=0.2, end=0.6, **({"every": 1} if method == "igu-lora" else {}))
    trainer = trl.SFTTrainer(
        llama(),
        arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_folder, eos_token="[SEP]"),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        callbacks=[allocation],
    )
    trainer.train()
    assert allocation.plan is not None
    assert len(allocation.plan.ranks) == 14
    trainer.save_model(str(tmp_path / "final"))
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path / "final")).eval()
    batch = {"input_ids": torch.arange(5, 17).reshape(2, 6)}
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        assert torch.allclose(loaded(**batch).logits, expected.float(), atol=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward", "grpo"])
def test_ranks_are_scored_by_the_loss_that_is_trained(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attached, the first pass of our own gives the loss that training has just logged; without that it is refused."""
    seen, own = [], TrainerPass._loss

    def spied(self: TrainerPass, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(own(self, *arguments, **options))
        return seen[-1]

    monkeypatch.setattr(TrainerPass, "_loss", spied)
    allocation = RankAllocation("igu-lora", "r=2", every=1)
    trainer = trl_trainer(kind, tmp_path, [allocation])
    allocation.attach(trainer)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(seen[0].detach()) == pytest.approx(logged[0], abs=1e-5)
    assert allocation.plan.total_rank
    alone = trl_trainer(kind, tmp_path, [RankAllocation("igu-lora", "r=2", every=1)])
    with pytest.raises(TrainingError, match=r"allocation\.attach\(trainer\).*estimator='training-pass'"):
        alone.train()
