"""Every block of Python in the pages runs, at a small size: names that a page takes as given are tiny models and a few rows."""

import json
import shlex
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import random_batch, tiny_config, tiny_writer
from tests.docs.pages import PAGES, Block, blocks
from tests.expert_models import batches as expert_batches
from tests.expert_models import make
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import SFTTrainer
from typer.testing import CliRunner

import lorank
from lorank import AllocationLoop, ImportanceScores, RankAllocation, RankPlan
from lorank.cli import app
from lorank.methods import METHODS

README = Path("README.md").resolve()
# CONTRIBUTING.md shows a docstring.
BLOCKS = [
    block for page in PAGES for block in blocks(page) if block.language == "python" and page.name != "CONTRIBUTING.md"
]
SMALLER = {
    '"8.8M"': '"r=2"',
    '"50k"': '"r=1"',
    '"CAUSAL_LM"': '"SEQ_CLS"',
    '["multi_modal_projector"]': '["query"]',
    '{"vision_model": "r=2", "language_model": "20M"}': '{"0": "r=2", "1": "1k"}',
    "microsoft/deberta-v3-base": "tiny",
    "num_labels=8": "num_labels=2",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "chat",
    'SFTConfig("out",': 'SFTConfig("out", max_steps=40, use_cpu=True, bf16=False, report_to="none",',
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"


def classifier() -> BertForSequenceClassification:
    set_seed(0)
    return BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))


def adapted(trained: bool = False) -> PeftModel:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=not trained)
    return get_peft_model(classifier(), lora)


def arguments(folder: str) -> TrainingArguments:
    return TrainingArguments(folder, max_steps=20, per_device_train_batch_size=4, use_cpu=True, report_to="none")


def rows(seed: int, count: int = 48) -> list[dict[str, Any]]:
    batch = random_batch(count, seed=seed)
    return [{key: value[k].tolist() for key, value in batch.items()} for k in range(count)]


def stand_ins() -> dict[str, Any]:
    """What pages take as given, by the names that they use."""
    batches = [random_batch(8, seed=seed) for seed in range(6)]
    found = dict.fromkeys(("dataloader", "batches", "train_loader"), batches)
    held_out: Any = [random_batch(8, seed=seed) for seed in range(10, 14)]
    found |= {name: DataLoader(held_out, batch_size=None) for name in ("held_out_loader", "scoring_loader")}
    found |= {"rows": rows(1), "all_rows": rows(1), "held_out": rows(2), "steps": 20}
    found |= {name: arguments(name) for name in ("arguments", "stage1_arguments", "stage2_arguments")}
    found |= {
        "model": classifier(),
        "base_model": classifier(),
        "base": classifier(),
        "peft_model": adapted(trained=True),
    }
    known = (
        lorank,
        torch,
        Trainer,
        TrainingArguments,
        SFTTrainer,
        LoraConfig,
        get_peft_model,
        PeftModel,
        AutoTokenizer,
    )
    found |= {one.__name__: one for one in (*known, RankAllocation, AllocationLoop, RankPlan)}
    return found


def loop(names: dict[str, Any], done: int) -> None:
    """A loop of one's own that has made some steps."""
    names["model"] = adapted()
    names["allocation"] = AllocationLoop(
        names["model"], "i-lora", "r=2", steps=20, scoring_data=names["scoring_loader"]
    )
    names["optimizer"] = torch.optim.AdamW(names["model"].parameters(), lr=1e-3)
    for batch in names["batches"][:done]:
        names["model"].train()(**batch).loss.backward()
        names["allocation"].after_backward()
        names["allocation"].before_step()
        names["optimizer"].step()
        names["allocation"].after_step(names["optimizer"])
        names["optimizer"].zero_grad()


def saved_loop(names: dict[str, Any]) -> None:
    loop(names, 3)
    made = {name: names[name].state_dict() for name in ("model", "allocation", "optimizer")}
    torch.save(made, "saved.pt")
    loop(names, 0)
    names["model"] = adapted()


def with_scaler(names: dict[str, Any]) -> None:
    loop(names, 2)
    names["scaler"] = torch.amp.GradScaler("cpu")
    names["loss"] = names["model"](**names["batches"][0]).loss


def texts_to_learn(names: dict[str, Any]) -> None:
    names["model"] = "chat"
    names["rows"] = names["all_rows"] = names["held_out"] = texts()
    names |= {name: sft_arguments(name) for name in ("stage1_arguments", "stage2_arguments")}


def sft_arguments(folder: str) -> Any:
    from trl import SFTConfig

    return SFTConfig(folder, max_steps=12, per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to="none")


def texts() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"text": ["the day was fine and warm", "the house looked cold and grim"] * 12})


# A part of the block -> what has to be there before it.
BEFORE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "saved = torch.load": saved_loop,
    "AllocationLoop(model": lambda names: names.update(model=adapted(), batches=names["batches"] * 4),
    "torch.save(": lambda names: loop(names, 3),
    "scaler.scale": with_scaler,
    "Trainer(model, stage1_arguments, train_dataset=rows)": lambda names: names.update(model=adapted()),
    "SFTTrainer(\n    model, stage1": texts_to_learn,
    "all-experts": lambda names: names.update(model=make("mixtral"), batches=expert_batches(4, 4)),
    "headroom_at_looks": lambda names: names.update(losses=np.random.default_rng(0).normal(1, 0.1, (4, 5, 60))),
    "layer_groups": lambda names: names.update(plan=RankPlan.load("runs/cola/plan.json")),
}


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that pages name."""
    monkeypatch.chdir(tmp_path)
    for name, target in (("tiny", tiny_folder), ("chat", tiny_writer("decoder", tiny_folder, tmp_path / "chat"))):
        if not Path(name).exists():
            Path(name).symlink_to(target)
    tokenizer = AutoTokenizer.from_pretrained("chat")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("chat")
    said = [" ".join(words) for words in permutations(("the", "day", "was", "fine", "and", "warm"), 3)][:60]
    chats = [[{"role": "user", "content": "the day"}, {"role": "assistant", "content": text}] for text in said]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    scores = lorank.score(classifier(), None, method="magnitude")
    units = {name: np.linspace(1, 0, 4) for name in scores.scores}
    scores = ImportanceScores(units, scores.unit_costs)
    plan = lorank.allocate(scores, "r=2")
    for run in ("quickstart", "cola"):
        Path("runs", run).mkdir(parents=True)
        scores.save(Path("runs", run, "scores.safetensors"))
        plan.save(Path("runs", run, "plan.json"))
    Path("stage1").mkdir()
    plan.save(Path("stage1", "plan.json"))
    for adapter in ("adapter", "runs/news/adapter"):
        adapted().save_pretrained(adapter)
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(adapter)
    before = dict(METHODS)
    yield tmp_path
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.why_not is None], ids=str)
def test_python_runs(block: Block, folder: Path) -> None:
    names, text = stand_ins(), block.text
    for part, prepare in BEFORE.items():
        if part in text:
            prepare(names)
            break
    for usual, small in SMALLER.items():
        text = text.replace(usual, small)
    exec(compile(text, str(block), "exec"), names)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
def test_the_two_commands_of_the_readme_run(folder: Path) -> None:
    (text,) = (block.text for block in blocks(README) if block.language == "sh" and "lorank init" in block.text)
    small = ["train.max_steps=20", "train.batch_size=4", "train.eval_every=null", "data.max_length=32"]
    for line in text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "chat").splitlines():
        words = shlex.split(line, comments=True)[1:]
        ran = CliRunner().invoke(app, [*words, *(small if words[0] == "run" else [])])
        assert ran.exit_code == 0, ran.output
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("chat"), "runs/chats/adapter").peft_config
