"""A tiny random model is scored, gets a plan, is trained, cut, saved and read again: what a user's run does, in seconds."""

import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

from lorank.allocation import allocate
from lorank.errors import one_line
from lorank.in_training.loop import AllocationLoop
from lorank.methods.score import score
from lorank.plan import RankPlan
from lorank.serving.saved_adapter import check_saved_adapter

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS = 12
# In quotes, where it may hold spaces; else to the next space, without the punctuation after it. The address of a page is none.
_START = r"(?:file:/+|(?<![\w./:])/+|(?<=:)/(?!/)|(?<=-[IL])/|\b[A-Za-z]:[\\/](?!/)|\\\\(?=\w))"
_PATH = re.compile(
    rf"""(?P<quote>['"]){_START}(?:(?!(?P=quote)).)+(?P=quote)|{_START}[^\s"]*[^\s'",;:.)\]]""", re.DOTALL
)


@dataclass(frozen=True)
class Outcome:
    """One part of the test: its name, what came out, whether that is right, and seconds."""

    name: str
    said: str
    right: bool
    seconds: float


def self_test(device: str) -> list[Outcome]:
    """Try everything that a training needs on a device; what fails is told with its error, and the rest is tried too."""
    parts: dict[str, Callable[[str], str]] = {
        "ranks before training": _before_training,
        "ranks while training": _while_training,
    }
    outcomes = []
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a model of two layers and a handful of examples
                said, right = part(device), True
        except Exception as error:  # whatever it is, it is what is looked for
            said, right = f"{type(error).__name__}: {one_line(_without_paths(str(error)))}", False
        outcomes.append(Outcome(f"{name}, {device}", said, right, time.perf_counter() - began))
    return outcomes


def _without_paths(text: str) -> str:
    """The text with `(path)` for every absolute path: what is said is for a bug report, and paths hold names of people."""
    # Outside of quotes a path ends at a space, and these are known.
    for folder in (os.path.expanduser("~"), *(os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP"))):
        if " " in folder:
            text = text.replace(folder, "/path")
    return _PATH.sub("(path)", text)


def _base(device: str) -> BertForSequenceClassification:
    set_seed(0)
    return BertForSequenceClassification(BertConfig(**_SIZES, num_labels=2)).to(device).eval()


def _batches(device: str) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (STEPS, 8, 12), generator=draw)
    rows = [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one[:, 0] % 2} for one in ids]
    return [{key: value.to(device) for key, value in row.items()} for row in rows]


def _before_training(device: str) -> str:
    base, batches = _base(device), _batches(device)
    scores = score(base, batches, method="sensitivity-lora")
    plan = allocate(scores, "r=2")
    model = get_peft_model(base, plan.lora_config(task_type="SEQ_CLS"))
    _train(model, batches)
    return f"{plan.spent:,} of {plan.budget_parameters:,} parameters; {_saved_and_read(model, plan, device)}"


def _while_training(device: str) -> str:
    batches = _batches(device)
    model = get_peft_model(
        _base(device), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS")
    )
    allocation = AllocationLoop(model, "igu-lora", "r=2", steps=STEPS, every=1)
    optimizer = _train(model, batches, allocation)
    plan = allocation.finish(optimizer)
    return f"{plan.spent:,} of {plan.budget_parameters:,} parameters; {_saved_and_read(model, plan, device)}"


def _train(model: PeftModel, batches: list[dict[str, torch.Tensor]], allocation: Any = None) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        if allocation is not None:
            allocation.after_backward()
            allocation.before_step()
        optimizer.step()
        if allocation is not None:
            allocation.after_step(optimizer)
        optimizer.zero_grad()
    return optimizer


@torch.no_grad()
def _saved_and_read(model: PeftModel, plan: RankPlan, device: str) -> str:
    """Largest difference of the logits after saving, and reading by PEFT alone.

    Raises:
        ValueError: the adapter that was read is another one.

    """
    batch = {key: value for key, value in _batches(device)[0].items() if key != "labels"}
    wanted = model.eval()(**batch).logits
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        check_saved_adapter(folder, plan)
        found = PeftModel.from_pretrained(_base(device), folder).eval()(**batch).logits
    if (largest := float((found - wanted).abs().max())) > 1e-4:
        raise ValueError(f"the adapter was saved and read again, and the logits differ by {largest:.1e}")
    return f"saved, read by PEFT, logits differ by {largest:.1e}"
