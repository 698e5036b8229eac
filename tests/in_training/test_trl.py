"""TRL's trainers make the adapter themselves, from `peft_config`, and most of them compute a loss of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.in_training.trl_cases import trl_trainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed
from trl.trainer.utils import use_adapter

from lorank import RankAllocation
from lorank.engine.path_measure import TrainingPath
from lorank.errors import TrainingError
from lorank.in_training.trainer_pass import TrainerPass

trl = pytest.importorskip("trl")


def llama() -> LlamaForCausalLM:
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=64, pad_token_id=0, **sizes))


@pytest.mark.parametrize("method", ["igu-lora", "adalora"])
def test_one_callback_in_sft_trainer(
    method: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lorank: ")]
    assert said == [f"lorank: {line}" for line in allocation.lines()]
    assert f"{method}, budget r=2: {allocation.plan.spending}" in said[0]
    trainer.save_model()  # over TRL's card
    card = (tmp_path / "README.md").read_text()
    assert f"- {allocation.lines()[0]}\n" in card
    assert "- sft\n" in card
    assert "from transformers import LlamaForCausalLM\n" in card
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
    """Attached, a pass of our own gives the loss that training logs in that step; without that it is refused."""
    repeated, own = [], TrainerPass.repeated

    def spied(self: TrainerPass, inputs: Any) -> torch.Tensor:
        loss = own(self, inputs)
        repeated.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(TrainerPass, "repeated", spied)
    monkeypatch.setattr(TrainingPath, "comparison_growth", 2)  # of so few steps the 2nd and 4th are compared too
    # A rate at which the loss soon differs from where any data begins: log 2 (DPO), 1/2 (KTO), 0 (GRPO).
    options = {"learning_rate": 0.2, "warmup_steps": 0}
    allocation = RankAllocation("igu-lora", "r=2", every=1)
    trainer = trl_trainer(kind, tmp_path, [allocation], **options)
    allocation.attach(trainer)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert repeated == pytest.approx(
        logged[:2], abs=1e-5
    )  # compared at the 1st, 2nd, 4th, ... step, up to the last cut
    assert abs(repeated[1] - repeated[0]) > 1e-4
    assert allocation.plan.total_rank
    alone = trl_trainer(kind, tmp_path, [RankAllocation("igu-lora", "r=2", every=1)])
    with pytest.raises(TrainingError, match=r"allocation\.attach\(trainer\).*estimator='training-pass'"):
        alone.train()


class Reference(TrainerCallback):
    """After each step, what TRL takes as the reference (`use_adapter`), and what is trained."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.trained.append(outputs(model))
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            self.seen.append(outputs(model))


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    was = model.training
    logits = model.eval()(input_ids=torch.arange(3, 15).reshape(2, 6)).logits
    model.train(was)
    return logits


@pytest.mark.parametrize("begun", [pytest.param("new", marks=pytest.mark.long), "trained"])
def test_the_reference_stays_the_model_that_training_began_with(begun: str, tmp_path: Path) -> None:
    """That is the model without its adapter; or, where a trained adapter trains on, TRL's copy of it, which cuts leave alone."""
    set_seed(0)
    model = None
    if begun == "trained":
        model = get_peft_model(
            trl_trainer("dpo", tmp_path).model.get_base_model(), LoraConfig(r=4, target_modules="all-linear")
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    watch = Reference()
    trainer = trl_trainer("dpo", tmp_path, [watch], model, max_steps=12)
    start = outputs(trainer.model)
    allocation = RankAllocation("adalora", "r=1").attach(trainer)
    trainer.train()
    assert all(torch.equal(seen, start if begun == "trained" else watch.seen[0]) for seen in watch.seen)
    assert (watch.trained[-1] - start).abs().max() > 1e-4
    trainer.save_model(str(tmp_path / "final"))
    tensors = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == allocation.plan.spent
    final = outputs(trainer.model)
    base = trainer.model.unload()
    assert torch.equal(outputs(read(base, tmp_path / "final")), final)
    if begun == "trained":
        assert torch.equal(outputs(read(base, tmp_path / "final" / "ref")), start)


def read(base: LlamaForCausalLM, adapter: Path) -> PeftModel:
    """With a base model that TRL has not changed."""
    fresh = LlamaForCausalLM(base.config)
    fresh.load_state_dict(base.state_dict())
    return PeftModel.from_pretrained(fresh, str(adapter))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dpo", "kto", "reward", "grpo", "rloo"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        trainer = trl_trainer(kind, tmp_path, max_steps=8, save_strategy="steps", save_steps=3)
        allocation = RankAllocation("igu-lora", "r=2", every=1).attach(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append((allocation.plan, dict(trainer.model.named_parameters())))
    (whole, expected), (again, resumed) = found
    assert again == whole
    assert all(torch.equal(resumed[name], parameter) for name, parameter in expected.items())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the scoring set is a single batch")
@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_i_lora_in_two_stages(kind: str, tmp_path: Path) -> None:
    """The second stage trains what the plan says, to the last parameter."""
    first = trl_trainer(kind, tmp_path / "first")
    allocation = RankAllocation("i-lora", "r=1", scoring_data="scoring").attach(first)
    first.train()
    options = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"} if kind == "reward" else {"task_type": "CAUSAL_LM"}
    model = get_peft_model(first.model.unload(), allocation.plan.lora_config(**options))
    second = trl_trainer(kind, tmp_path / "second", model=model)
    second.train()
    trained = sum(p.numel() for name, p in second.model.named_parameters() if p.requires_grad and ".lora_" in name)
    assert trained == allocation.plan.spent


@pytest.mark.parametrize(
    ("kind", "method", "options", "said"),
    [
        ("grpo", "i-lora", {"scoring_data": "scoring"}, "GRPOTrainer makes what it trains on"),
        ("rloo", "i-lora", {"source": "training"}, "RLOOTrainer makes what it trains on"),
        ("grpo", "igu-lora", {"preset": "official"}, "another random factor"),
    ],
)
def test_what_a_trainer_that_generates_cannot_be_scored_by(
    kind: str, method: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=said):
        RankAllocation(method, "r=2", **options).attach(trl_trainer(kind, tmp_path))
