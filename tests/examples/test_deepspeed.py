"""examples/train_a_plan_deepspeed.py as a user runs it, on two gloo processes: `make deepspeed`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.conftest import tiny_trainer
from tests.examples.run_script import EXAMPLES, run_script
from tests.examples.test_trainers import llama
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from lorank import RankAllocation, RankPlan, TrainingError, check_saved_adapter

pytestmark = pytest.mark.deepspeed
SCRIPT = EXAMPLES / "train_a_plan_deepspeed.py"
STEPS = 6


def train(root: Path, out: Path, zero: int) -> str:
    """What the second command of the script prints, in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words = ["tests.examples.deepspeed_on_cpu", SCRIPT, "train", root / "llama", root / "data", out, STEPS]
    own = {"ZERO": str(zero), "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *map(str, words)],
        env={**os.environ, **own, "TORCH_EXTENSIONS_DIR": str(root / "built"), "HF_HUB_OFFLINE": "1"},
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, texts of one length, a plan of one process, and what DDP makes of it in `ddp`."""
    root = tmp_path_factory.mktemp("deepspeed")
    llama(root / "llama", initializer_range=0.3)
    (root / "data").mkdir()
    texts = [" ".join(f"w{(i * (k + 3) + k) % 19}" for i in range(8)) for k in range(64)]
    (root / "data" / "train.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    run_script(SCRIPT.name, "plan", root / "llama", root / "data", root / "plan", STEPS, timeout=600)
    started(root, "ddp")
    train(root, root / "ddp", 0)
    return root


def started(root: Path, name: str) -> Path:
    (root / name).mkdir()
    shutil.copy(root / "plan" / "plan.json", root / name)
    return root / name


@pytest.mark.parametrize("zero", [2, 3])
def test_a_plan_under_zero(zero: int, root: Path) -> None:
    """As DDP trains it, to 1e-5; the plan's parameters and no shards; resumed in the middle, the same; plain PEFT reads it."""
    plan, out = RankPlan.load(root / "plan" / "plan.json"), started(root, f"zero-{zero}")
    assert len(set(plan.ranks.values())) > 2
    said = train(root, out, zero)
    assert said.count(f"{plan.spent:,} of {plan.budget_parameters:,} parameters") == 1  # one process says it
    assert check_saved_adapter(out / "adapter", plan) == plan.spent
    whole, ddp = tensors(out), tensors(root / "ddp")
    assert whole.keys() == ddp.keys()
    assert max(float((whole[key] - ddp[key]).abs().max()) for key in ddp) < 1e-5
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / f"checkpoint-{STEPS}")
    train(root, out, zero)
    resumed = tensors(out)
    assert max(float((whole[key] - resumed[key]).abs().max()) for key in whole) < 1e-6
    base = AutoModelForCausalLM.from_pretrained(root / "llama")
    loaded, ids = PeftModel.from_pretrained(base, str(out / "adapter")).eval(), torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        adapted = loaded(input_ids=ids).logits
        with loaded.disable_adapter():
            assert not torch.allclose(adapted, loaded(input_ids=ids).logits)


def test_in_training_allocation_is_refused_by_its_configuration(tmp_path: Path) -> None:
    """When the Trainer is made, and so before DeepSpeed has the model."""
    model, config = tiny_trainer(tmp_path).model, {"train_batch_size": 4, "zero_optimization": {"stage": 2}}
    arguments = TrainingArguments(tmp_path, use_cpu=True, deepspeed=config, per_device_train_batch_size=4)
    with pytest.raises(TrainingError, match="score, allocate, then train the plan with it"):
        Trainer(model, arguments, callbacks=[RankAllocation("igu-lora", "r=2")])
