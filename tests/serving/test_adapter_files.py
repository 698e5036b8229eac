"""Adapters from anywhere: what is broken, and what is no plain LoRA, is one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorank.errors import AdapterError
from lorank.serving.adapter_files import CONFIG, WEIGHTS, AdapterFiles
from lorank.serving.base_layers import BaseLayers


def edited(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Path:
    shutil.copytree(source, target)
    config, tensors = json.loads((target / CONFIG).read_text()), load_file(target / WEIGHTS)
    change(config, tensors)
    (target / CONFIG).write_text(json.dumps(config))
    save_file(tensors, target / WEIGHTS)
    return target


def some(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(key for key in tensors if key.endswith(ending))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: t.pop(some(t, "lora_B.weight")), "has no lora_B; the file is incomplete"),
        (lambda c, t: t.update({some(t, "lora_A.weight"): torch.ones(3, 5, 2)}), "allowed: (r, d_in) and (d_out, r)"),
        (lambda c, t: t[some(t, "lora_A.weight")].fill_(float("nan")), "holds NaN or infinity"),
        (lambda c, t: t.clear(), "holds no LoRA tensors"),
        (lambda c, t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(3)}), "is DoRA"),
        (lambda c, t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(3)}), "is an embedding"),
        (lambda c, t: t.update({"base_model.model.x.lora_E": torch.ones(3)}), "is AdaLoRA"),
        (lambda c, t: t.update({"base_model.model.x.lora_Z": torch.ones(3)}), "is unknown to lorank"),
        (lambda c, t: t.update({some(t, "lora_A.weight"): t[some(t, "lora_A.weight")].int()}), "floating-point"),
        (lambda c, t: c.update(use_dora=True), "use_dora is on: DoRA"),
        (lambda c, t: c.update(bias="all"), "biases of the base model were trained"),
        (lambda c, t: c.update(peft_type="VERA"), "peft_type is 'VERA', only LORA"),
        (lambda c, t: c.update(peft_type="FUTURE"), "peft_type is 'FUTURE', only LORA"),
        (lambda c, t: c.pop("peft_type"), "not the config of a PEFT adapter"),
        (lambda c, t: c.update(r=0), "r is 0; allowed: a whole number from 1"),
        (lambda c, t: c.update(lora_alpha="16"), "lora_alpha is '16'; allowed: a number from 0"),
        (lambda c, t: c.update(rank_pattern={"q_proj": 2.5}), "rank_pattern of 'q_proj' is 2.5"),
        (lambda c, t: c.update(rank_pattern={}, r=7), "says rank 7 for"),
        (lambda c, t: c.update(init_lora_weights="pissa_niter_4"), "changes the base weights on loading"),
    ],
)
def test_broken_and_foreign_adapters(change: Any, message: str, trained: Any, tmp_path: Path) -> None:
    folder = edited(trained("decoder"), tmp_path / "adapter", change)
    with pytest.raises(AdapterError) as caught:
        AdapterFiles.read(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_damaged_and_pickled_files(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"has no adapter_config.json"):
        AdapterFiles.read(tmp_path)
    folder = shutil.copytree(trained("decoder"), tmp_path / "adapter")
    whole = (folder / WEIGHTS).read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="damaged or cut off"):
            AdapterFiles.read(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is a pickle, which is not read"):
        AdapterFiles.read(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model.safetensors"):
        AdapterFiles.read(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match="damaged or not JSON"):
        AdapterFiles.read(folder)


def test_adapters_that_peft_itself_saves_as_something_else(bases: dict[str, Path], tmp_path: Path) -> None:
    configs = {
        "DoRA": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type=TaskType.CAUSAL_LM),
        "ADALORA": AdaLoraConfig(init_r=2, target_r=1, total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "expert tensors": LoraConfig(
            r=2, target_parameters=["gate_proj.weight"], target_modules=[], task_type="CAUSAL_LM"
        ),
    }
    for named, config in configs.items():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["decoder"]), config)
        model.save_pretrained(str(tmp_path / named))
        with pytest.raises(AdapterError, match=named):
            AdapterFiles.read(tmp_path / named)


def test_names_and_shapes_are_those_of_the_base_model(bases: dict[str, Path], trained: Any, tmp_path: Path) -> None:
    def renamed(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if ".layers.2." in key]:
            tensors[key.replace(".layers.2.", ".layers.7.")] = tensors.pop(key)
        config["rank_pattern"] = {k.replace("layers.2", "layers.7"): v for k, v in config["rank_pattern"].items()}

    base = BaseLayers.read(str(bases["decoder"]), "CAUSAL_LM")
    with pytest.raises(
        AdapterError, match=r"'model.layers.7.*does not have as a linear layer \(did you mean model.layers"
    ):
        base.check(AdapterFiles.read(edited(trained("decoder"), tmp_path / "renamed", renamed)))
    wider = BaseLayers("wider", {name: (d_out, d_in + 1) for name, (d_out, d_in) in base.shapes.items()}, base.config)
    with pytest.raises(AdapterError, match=r"is for a layer of shape \(32, 48\), wider has \(32, 49\)"):
        wider.check(AdapterFiles.read(trained("decoder")))
    with pytest.raises(AdapterError, match=r"base model 'nowhere' cannot be read: .* as --base"):
        BaseLayers.read("nowhere", "CAUSAL_LM")
    with pytest.raises(AdapterError, match="task_type 'POETRY' is unknown"):
        BaseLayers.read(str(bases["decoder"]), "POETRY")


def patterned(base: Path, **patterns: Any) -> Any:
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["q_proj", "k_proj", "down_proj"],
        task_type="CAUSAL_LM",
        **patterns,
    )
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)


def test_scales_are_those_that_peft_applies(bases: dict[str, Path], tmp_path: Path) -> None:
    """Suffix patterns, regular expressions, the first match, rsLoRA."""
    alphas = {"0.mlp.down_proj": 7, "down_proj": 9}
    model = patterned(bases["decoder"], rank_pattern={"q_proj": 2, r"layers\.1\.mlp.*proj": 4}, alpha_pattern=alphas)
    model.save_pretrained(str(tmp_path))
    files = AdapterFiles.read(tmp_path)
    for name, scale in files.peft_scales().items():
        layer: Any = model.get_base_model().get_submodule(name)
        assert scale == pytest.approx(layer.scaling["default"])
        assert files.pairs[name].rank == layer.r["default"]


def test_overlapping_patterns_that_peft_saves_in_another_order(bases: dict[str, Path], tmp_path: Path) -> None:
    model = patterned(bases["decoder"], rank_pattern={"q_proj": 2, r"layers\.1\..*proj": 4})
    model.save_pretrained(str(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):  # PEFT cannot load what it saved
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["decoder"]), str(tmp_path))
    with pytest.raises(AdapterError, match=r"says rank 4 .* and its tensors have 2.*sorts patterns when it saves"):
        AdapterFiles.read(tmp_path)
