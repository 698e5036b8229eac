"""FSDP2 and DDP on two gloo processes: the plans and adapters of one process."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.conftest import random_batch, tiny_writer
from tests.in_training.sharded_cases import OPTIONS, cases, in_a_loop, save, tiny_model
from tests.test_processes import launched
from transformers import LlamaConfig, LlamaForCausalLM

from lorank.errors import AdapterError, LorankWarning, RecipeError, TrainingError
from lorank.in_training import sharded_base
from lorank.in_training.adapter_audit import check_saved
from lorank.runs import checks
from lorank.runs.run import run
from lorank.tasks.section import DataSection

SCRIPT = "tests.in_training.sharded_cases"
ROOT = Path(__file__).parents[2]


def alone(folder: Path, *names: str) -> None:
    """The same cases in this process."""
    for name in names:
        (folder / name).mkdir(parents=True)
        save(cases(folder)[name](), folder / name)


def same(found: Path, wanted: Path) -> None:
    """Equal ranks, the same tensors, and numbers to 1e-6."""
    assert json.loads((found / "ranks.json").read_text()) == json.loads((wanted / "ranks.json").read_text())
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (found, wanted))
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in other.items()}
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=0, atol=1e-6)


def test_two_processes_with_a_sharded_base_make_the_plans_of_one(tmp_path: Path) -> None:
    """An own loop (no patch) for each method, one under DDP, and a Trainer: accumulated gradients, clipping, a head."""
    sharded, trained = [f"loop-{method}" for method in OPTIONS], ["fsdp-igu-lora"]
    names = [*sharded, "loop-kept-igu-lora", "loop-ddp-adalora", *trained]
    launched(SCRIPT, str(tmp_path / "two"), *names)
    alone(tmp_path / "one", *sharded, *trained)
    assert any(
        "classifier" in key for key in load_file(tmp_path / "two/fsdp-igu-lora/adapter/adapter_model.safetensors")
    )
    for name in names:
        same(tmp_path / "two" / name, tmp_path / "one" / name.replace("-ddp", "").replace("-kept", ""))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:16 of 16 scoring examples:lorank.errors.LorankWarning")
def test_trainers_resume_and_end_as_one_process_does(tmp_path: Path) -> None:
    """DDP and FSDP2; resumed before and after the last cut, and by one process what two began."""
    first = ["ddp-adalora", "ddp-igu-lora", "ddp-i-lora", "ddp-resumed-3", "ddp-resumed-6"]
    second = [
        "fsdp-adalora",
        "fsdp-adalora-callback",
        "fsdp-igu-lora",
        "fsdp-i-lora",
        "fsdp-resumed-3",
        "fsdp-resumed-6",
    ]
    launched(SCRIPT, str(tmp_path / "two"), "loop-sharded-first-igu-lora", *first, *second)
    alone(tmp_path / "one", "ddp-adalora", "ddp-igu-lora", "ddp-i-lora", "sft", "loop-igu-lora")
    same(tmp_path / "two" / "loop-sharded-first-igu-lora", tmp_path / "one" / "loop-igu-lora")
    for name in (*first, *second):
        kept = name.replace("resumed-3", "igu-lora").replace("resumed-6", "igu-lora").removesuffix("-callback")
        same(tmp_path / "two" / name, tmp_path / "one" / kept.replace("fsdp", "ddp"))
    for name in ("ddp-resumed-3", "ddp-resumed-6"):
        (tmp_path / "two" / name).rename(tmp_path / "two" / f"by two {name}")
        alone(tmp_path / "two", name)  # from the checkpoints of two processes
        same(tmp_path / "two" / name, tmp_path / "one" / "ddp-igu-lora")
    with pytest.raises(TrainingError, match="written with FSDP, and is resumed without it"):
        cases(tmp_path / "two")["fsdp-resumed-3"]()


@pytest.mark.long
def test_a_killed_process_ends_the_other_and_resuming_gives_the_undisturbed_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(tmp_path), "killed"], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    waited = time.time() - float((tmp_path / "killed/killed at").read_text())
    assert done.returncode != 0
    assert waited < 60
    assert "SIGKILL" in done.stderr
    launched(SCRIPT, str(tmp_path), "after-killed", "fsdp-igu-lora")
    same(tmp_path / "after-killed", tmp_path / "fsdp-igu-lora")


@pytest.mark.long
@pytest.mark.parametrize("writes", [False, True], ids=["classifier", "decoder"])
def test_a_run_with_a_sharded_base(
    writes: bool, tiny_recipe, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --use_fsdp -m lorank run`, as the environment tells it; also the baseline's adapter is whole.

    The decoder is in 4 bits.
    """
    told = {"USE": "true", "VERSION": "2", "CPU_RAM_EFFICIENT_LOADING": "false", "STATE_DICT_TYPE": "FULL_STATE_DICT"}
    layer = "LlamaDecoderLayer" if writes else "BertLayer"
    told |= {"AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "TRANSFORMER_CLS_TO_WRAP": layer}
    for key, value in told.items():
        monkeypatch.setenv("ACCELERATE_USE_FSDP" if key == "USE" else f"FSDP_{key}", value)
    recipe = tiny_recipe(method="i-lora", baselines=["lora"])
    if writes:  # its metric needs no text
        row = '{{"passage": "the day was cold {}", "question": "was the day cold", "answer": "true"}}\n'
        (tmp_path / "rows.jsonl").write_text("".join(row.format("cold " * k) for k in range(160)))
        data = DataSection(train=str(tmp_path / "rows.jsonl"), test=str(tmp_path / "rows.jsonl"), task="boolq")
        pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")
        name = str(tiny_writer("decoder", tiny_folder, tmp_path / "model"))
        model = recipe.model.model_copy(update={"name": name, "quantization": "4bit"})
        recipe = recipe.model_copy(update={"model": model, "data": data, "metrics": ("log_likelihood",)})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    launched("tests.in_training.fsdp_on_cpu", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"))
    for key in told:
        monkeypatch.delenv("ACCELERATE_USE_FSDP" if key == "USE" else f"FSDP_{key}")
    assert list((tmp_path / "out").glob("**/pytorch_model_fsdp.bin"))
    result = run(recipe, tmp_path / "out", Console(quiet=True))
    assert set(result.results) == {"i-lora", "lora"}
    assert result.results["i-lora"]["adapter_parameters"] == result.plan.spent
    assert list(result.results["i-lora"]["metrics"]) == list(recipe.metrics or ("accuracy", "f1", "matthews"))


def test_a_sharded_model_does_not_write_texts(tiny_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(method="lora")
    data = recipe.data.model_copy(update={"task": "boolq"})
    monkeypatch.setattr(checks, "asks_for_fsdp", lambda: True)
    monkeypatch.setattr(checks, "only_cpu", lambda: False)
    checks._check_sharded(recipe)
    with pytest.raises(RecipeError, match=r"does not write texts here, and exact_match needs them.*log_likelihood"):
        checks._check_sharded(recipe.model_copy(update={"data": data}))
    checks._check_sharded(recipe.model_copy(update={"data": data, "metrics": ("log_likelihood",)}))
    bits = recipe.model.model_copy(update={"quantization": "8bit"})
    with pytest.raises(RecipeError, match=r"model.quantization: FSDP cannot hold a base in 8 bits.*use 4bit"):
        checks._check_sharded(recipe.model_copy(update={"model": bits}))
    with pytest.raises(RecipeError, match="no weight can stay whole under FSDP"):
        checks._check_sharded(recipe.model_copy(update={"method": "full"}))


def test_units_that_are_masked_train_the_rest_as_if_they_were_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last cut on, where several processes cannot make tensors smaller: clipping and the regulariser are as in one."""
    plan, model = in_a_loop("adalora")
    monkeypatch.setattr("lorank.in_training.loop.processes", lambda: SimpleNamespace(num_processes=2))
    masked_plan, masked = in_a_loop("adalora")
    assert masked_plan.ranks == plan.ranks
    for one, other in zip(model.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_what_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, state_dict_type="FULL_STATE_DICT")
    monkeypatch.setattr(sharded_base, "fsdp_plugin", lambda: plugin)
    model = tiny_model()
    for key, value, said in (
        ("fsdp_version", 1, "use version 2"),
        ("cpu_ram_efficient_loading", True, "fsdp_cpu_ram_efficient_loading: false"),
        ("state_dict_type", "SHARDED_STATE_DICT", "fsdp_state_dict_type: FULL_STATE_DICT"),
    ):
        with monkeypatch.context() as one:
            one.setattr(plugin, key, value)
            with pytest.raises(TrainingError, match=said):
                sharded_base.leave_whole(model)
    held = torch.nn.Sequential(
        type("Linear8bitLt", (torch.nn.Linear,), {})(2, 2)
    )  # by its name, as accelerate knows such
    with pytest.raises(TrainingError, match=r"cannot hold a base in 8 bits.* in 4 bits\. Or use DDP"):
        sharded_base.leave_whole(held)
    with pytest.raises(TrainingError, match="full fine-tuning under FSDP"):
        sharded_base.average_in_training(model.get_base_model())


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_copy_is_trained_of_is_left_whole_where_it_is_tied(tied: bool) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=tied, **sizes))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    embedding = base.get_input_embeddings().weight
    assert [id(parameter) for parameter in sharded_base._tied_originals(model)] == [id(embedding)] * tied


def test_ddp_in_place_of_fsdp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_base, "processes", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    with pytest.warns(LorankWarning, match="this is DDP"):
        sharded_base.warn_of_ddp(asked=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.warns(LorankWarning, match="this is DDP"):
        sharded_base.warn_of_ddp()


def saved_adapter(folder: Path) -> Any:
    """Plan and model of a short training, saved."""
    plan, model = in_a_loop("adalora")
    model.save_pretrained(str(folder))
    return plan, model


def test_the_file_is_compared_with_the_plan_and_the_model(tmp_path: Path) -> None:
    plan, model = saved_adapter(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if "lora_B" in key)
    for changed, said in (
        ({name: torch.zeros_like(tensors[name])}, "is zero in it, and not in the model"),
        ({name: tensors[name][: len(tensors[name]) // 2].clone()}, "the plan says .* shards of one"),
    ):
        save_file({**tensors, **changed}, path)
        with pytest.raises(AdapterError, match=said):
            check_saved(tmp_path, plan, model)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(AdapterError, match=r"B \(\)\), the plan says"):
        check_saved(tmp_path, plan, model)
    path.unlink()
    with pytest.raises(AdapterError, match="damaged or missing"):
        check_saved(tmp_path, plan, model)


def test_a_save_is_audited_and_copies_save_themselves(tmp_path: Path) -> None:
    _, model = saved_adapter(tmp_path)
    lost = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match="is zero in it"):
        model.save_pretrained(str(tmp_path / "lost"), state_dict=lost)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    twin.save_pretrained(str(tmp_path / "twin"))
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "twin"))
    assert all(torch.equal(other[key], 2 * tensor) for key, tensor in one.items())
    next(layer for layer in model.modules() if isinstance(layer, LoraLayer)).r["default"] += 1  # no longer the plan's
    model.save_pretrained(str(tmp_path / "other"), state_dict=lost)


def test_gradients_are_averaged_in_one_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process stands for two here: the other one adds its halves."""
    flats = []

    def reduced(flat: torch.Tensor) -> None:
        flats.append(flat.clone())
        flat[1] += 1.0 / 2  # the other process has a gradient by the second
        flat[3 + 2 :][:2] += 4.0 / 2

    monkeypatch.setattr(torch.distributed, "all_reduce", reduced)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.full((2,), 2.0)
    sharded_base.average_gradients([first, second, third])
    assert len(flats) == 1
    assert first.grad.tolist() == [1.0, 1.0]
    assert second.grad is not None
    assert second.grad.tolist() == [2.0, 2.0]
    assert third.grad is None


def test_a_part_of_the_model_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that passes the model by would train another adapter on each process."""
    monkeypatch.setattr(sharded_base, "_is_sharded", lambda model: True)
    monkeypatch.setattr(sharded_base, "average_gradients", lambda parameters: calls.append(len(parameters)))
    monkeypatch.setattr(sharded_base, "_begin_alike", lambda parameters: None)
    calls: list[int] = []
    model = tiny_model()
    averaged = sharded_base.AveragedGradients(model)
    model(**random_batch()).loss.backward()
    averaged.check(model)
    assert len(calls) == 1
    averaged.paused = True
    torch.autograd.grad(model(**random_batch()).loss, [p for p in model.parameters() if p.requires_grad])
    assert len(calls) == 1
    averaged.paused = False
    model.get_base_model()(**random_batch()).loss.backward()
    with pytest.raises(TrainingError, match="calling the model itself"):
        averaged.check(model)
