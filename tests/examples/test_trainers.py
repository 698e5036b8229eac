"""Scripts for other trainers than transformers' own, at a small size, each in this process."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tests.conftest import BAD, GOOD
from tests.examples.run_script import EXAMPLES
from tests.in_training.trl_cases import JUDGED, PAIRS, PROMPTS, WORDS, word_tokenizer
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    set_seed,
)

from lorank import RankPlan, check_saved_adapter

MOODS = [{"text": f"the day was {(GOOD, BAD)[k % 2][k % 4]}", "label": k % 2} for k in range(160)]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a script on a model and rows; its names afterwards. Output is in the folder `out`."""

    def running(script: str, model: Path, rows: list[dict[str, Any]], steps: int, *more: object) -> dict[str, Any]:
        path = EXAMPLES / script
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [path, model, tmp_path / "data", tmp_path / "out", steps, *more]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        return runpy.run_path(str(path), run_name="__main__")

    return running


def llama(folder: Path, kind: type = LlamaForCausalLM, **options: Any) -> Path:
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    kind(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=2, **sizes, **options)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def check_adapter(trained: Any, base: Any, adapter: Path, output: Path) -> None:
    """The plan to the last parameter; plain PEFT reads it with difference 0."""
    plan = RankPlan.load(output / "plan.json")
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for name, tensor in tensors.items() if ".lora_" in name) == plan.spent
    assert 0 < plan.spent <= plan.budget_parameters
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        wanted = trained.eval()(input_ids=ids)[0]
        loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
        assert torch.equal(loaded(input_ids=ids)[0], wanted)
        with loaded.disable_adapter():
            assert not torch.equal(loaded(input_ids=ids)[0], wanted)


@pytest.mark.filterwarnings("ignore:the ranks were decided by:lorank.errors.LorankWarning")
@pytest.mark.parametrize(
    ("script", "rows", "steps"),
    [
        pytest.param("dpo.py", PAIRS, 20, marks=pytest.mark.long),
        pytest.param("kto.py", JUDGED, 20, marks=pytest.mark.long),
        pytest.param("grpo.py", PROMPTS, 6, marks=pytest.mark.long),
    ],
)
def test_trl(script: str, rows: list[dict[str, Any]], steps: int, run: Run, tmp_path: Path) -> None:
    assert len((EXAMPLES / script).read_text().splitlines()) <= 45
    model = llama(tmp_path / "llama")
    done = run(script, model, rows, steps)
    base = AutoModelForCausalLM.from_pretrained(model)
    check_adapter(done["trainer"].model, base, tmp_path / "out" / "adapter", tmp_path / "out")


@pytest.mark.long
def test_a_reward_model_with_its_head(run: Run, tmp_path: Path) -> None:
    model = llama(tmp_path / "llama", LlamaForSequenceClassification, num_labels=1)
    done = run("reward.py", model, PAIRS, 6)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    check_adapter(done["trainer"].model, base, tmp_path / "out" / "adapter", tmp_path / "out")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the ranks were decided by:lorank.errors.LorankWarning")
def test_sentence_embeddings(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"anchor": f"the day was {GOOD[k % 4]}", "positive": f"{BAD[k % 3]} was the house"} for k in range(32)]
    done = run("sentence_embeddings.py", tiny_folder, rows, 20)
    out, plain = tmp_path / "out", SentenceTransformer(str(tiny_folder), device="cpu")
    check_adapter(done["model"][0].model, plain[0].model, out / "model", out)
    loaded = SentenceTransformer(str(out / "model"), device="cpu")
    assert (loaded.encode(["the day"]) == done["model"].encode(["the day"])).all()


def test_a_plan_is_made_and_then_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script for DeepSpeed without it, in one process; with it: `make deepspeed`."""
    script, out, model = EXAMPLES / "train_a_plan_deepspeed.py", tmp_path / "out", llama(tmp_path / "llama")
    assert len(script.read_text().splitlines()) <= 80
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(f'{{"text": "w1 w{k % 9} w{k % 7}"}}\n' for k in range(32)))
    monkeypatch.setenv("ZERO", "0")
    monkeypatch.setattr(sys, "argv", [str(word) for word in (script, "plan", model, tmp_path / "data", out, 2)])
    with pytest.raises(SystemExit):  # its end
        runpy.run_path(str(script), run_name="__main__")
    sys.argv[1] = "train"
    runpy.run_path(str(script), run_name="__main__")
    plan = RankPlan.load(out / "plan.json")
    assert check_saved_adapter(out / "adapter", plan) == plan.spent <= plan.budget_parameters


@pytest.mark.filterwarnings("ignore:the ranks were decided by:lorank.errors.LorankWarning")
def test_lightning(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    done = run("with_lightning.py", tiny_folder, MOODS, 20)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
    check_adapter(done["module"].model, base, tmp_path / "out" / "adapter", tmp_path / "out")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the ranks were decided by:lorank.errors.LorankWarning")
def test_lightning_goes_on_from_the_end_of_an_epoch(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with data in a fixed order and no dropout: Lightning restores neither the order nor random states."""
    still = AutoConfig.from_pretrained(
        tiny_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2
    )
    set_seed(0)
    AutoModelForSequenceClassification.from_pretrained(tiny_folder, config=still).save_pretrained(tmp_path / "still")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "still")
    with_options(monkeypatch, DataLoader, shuffle=False)
    with_options(monkeypatch, ModelCheckpoint, save_top_k=-1)
    whole = run("with_lightning.py", tmp_path / "still", MOODS, 25)
    checkpoint = next((tmp_path / "out").rglob("*step=10.ckpt"))  # pruning has begun, and has not ended
    again = run("with_lightning.py", tmp_path / "still", MOODS, 25, checkpoint)
    assert again["trainer"].global_step == 25
    assert again["ranks"].plan == whole["ranks"].plan
    for (name, first), (_, second) in zip(*(done["module"].named_parameters() for done in (whole, again)), strict=True):
        assert torch.equal(first, second), name


def with_options(monkeypatch: pytest.MonkeyPatch, kind: type, **options: Any) -> None:
    """Whoever makes one of these, it gets these options."""
    init = kind.__init__
    monkeypatch.setattr(kind, "__init__", lambda self, *arguments, **own: init(self, *arguments, **{**own, **options}))
