"""Chats on a real language model, in bf16 and in 4 bit, by all three systems; run by `make slow`.

Few and short rows: a processor without instructions for bf16 takes 20 s for a step of 80 tokens.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import AutoTokenizer

from lorank.models.loading import load_task_model
from lorank.module_names import is_adapter_tensor
from lorank.recipe.files import make_recipe
from lorank.runs.prepare import prepare
from lorank.runs.run import run
from lorank.training import allocation_stage, plan_stage

SMOLLM2, NEWS = Path("downloads/smollm2"), Path("downloads/reuters-r8/train.tsv")
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not (SMOLLM2.exists() and NEWS.exists()),
        reason="run `python examples/prepare_more.py downloads` and `python examples/prepare_quickstart.py downloads`",
    ),
]
# SmolLM2's own, with marks around what the assistant says.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of 40 of Reuters' news, and what each is about."""
    folder = tmp_path_factory.mktemp("chats")
    (folder / "template.jinja").write_text(TEMPLATE)
    with NEWS.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:40]
    told = []
    for row in rows:
        asked = "What is this news about? " + " ".join(row["text"].split()[:8])
        told.append(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is about {row['label']}."}]
        )
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for messages in told))
    return folder


def base_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if not is_adapter_tensor(name))


@pytest.mark.parametrize("quantization", [None, "4bit"])
@pytest.mark.parametrize("method", ["i-lora", "igu-lora", "sensitivity-lora"])
def test_chats_on_smollm2(
    method: str, quantization: str | None, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    for module in (plan_stage, allocation_stage):

        def stage(own: Any = module.train_stage, **options: Any) -> Any:
            ended = own(**options)
            trained.append(options["model"])
            return ended

        monkeypatch.setattr(module, "train_stage", stage)
    content: dict[str, Any] = {
        "model": {"name": str(SMOLLM2), "dtype": "bf16", "quantization": quantization},
        "method": method, "budget": "r=4", "triplets": {"initial_rank": 6}, "checkpoint_every": 100,
        "data": {
            "train": str(chats / "chats.jsonl"), "eval": 0.1, "task": "chat", "max_length": 40,
            "chat_template": str(chats / "template.jinja"),
        },
        "train": {"max_steps": 10 if method == "igu-lora" else 4, "batch_size": 2, "learning_rate": 1e-3},
    }  # fmt: skip
    if method == "i-lora":
        content |= {"measure": {"scoring_batch_size": 2}, "search": {"max_steps": 6, "learning_rate": 5e-3}}
    if method == "igu-lora":
        content |= {"measure": {"every": 1}}
    if method == "sensitivity-lora":
        content |= {"measure": {"examples": 4, "batch_size": 2}}
    recipe = make_recipe(content)
    result = run(recipe, tmp_path / "out", Console(quiet=True))
    found = result.results[method]
    assert found["adapter_parameters"] == result.plan.spent <= result.plan.budget_parameters
    assert len(set(result.plan.ranks.values())) > 1

    # 106,168,320 weights of linear layers: two bytes each, or half a byte and its scales; 28,347,264 others.
    expected = 2 * 28_347_264 + (2 if quantization is None else 0.5) * 106_168_320
    assert base_bytes(trained[-1]) == pytest.approx(expected, rel=0.1)

    recipe, prepared = prepare(recipe, (method,))
    plain = load_task_model(prepared.base, prepared.task_type, ()).model
    again = PeftModel.from_pretrained(plain, str(tmp_path / "out" / "adapter")).eval()
    assert base_bytes(again) == base_bytes(trained[-1])
    rows = prepared.tokenize(prepared.data.train.select(range(4)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "adapter")
    assert tokenizer.chat_template == TEMPLATE
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            assert torch.equal(again(ids).logits, trained[-1].eval()(ids).logits)
    print(method, quantization, found["more"]["eval"], f"{base_bytes(again):,} bytes", found["seconds"])
