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
from lorank.serving.adapter_config import CONFIG
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles, LoraPair
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
        (lambda c, t: c.update(r=0), "r is 0: Input should be greater than or equal to 1"),
        (lambda c, t: c.update(lora_alpha="16"), "lora_alpha is '16': Input should be a valid"),
        (
            lambda c, t: c.update(rank_pattern={"q_proj": 2.5}),
            "rank_pattern.q_proj is 2.5: Input should be a valid integer",
        ),
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


@pytest.mark.parametrize(
    "change",
    [
        {"rank_pattern": ["q_proj"]}, {"rank_pattern": "q_proj"}, {"rank_pattern": {"(": 2}}, {"alpha_pattern": {"*": 2}},
        {"target_modules": "(q"}, {"target_modules": 3}, {"target_modules": "q.*", "layers_to_transform": [0]},
        {"layers_pattern": "layers"}, {"exclude_modules": "("}, {"exclude_modules": 5}, {"modules_to_save": 3},
        {"modules_to_save": "lm_head"}, {"task_type": ["CAUSAL_LM"]}, {"lora_alpha": 10**400}, {"lora_alpha": True},
        {"lora_alpha": -1}, {"r": 2.0}, {"base_model_name_or_path": 7},
    ],
)  # fmt: skip
def test_fields_of_another_type_are_one_line(change: dict[str, Any], trained: Any, tmp_path: Path) -> None:
    folder = edited(trained("decoder"), tmp_path / "adapter", lambda config, tensors: config.update(change))
    with pytest.raises(AdapterError, match=r"adapter_config.json: ") as caught:
        AdapterFiles.read(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "null", ["bias", "rank_pattern", "alpha_pattern", "modules_to_save", "task_type", "init_lora_weights"]
)
def test_fields_that_are_null_are_as_if_they_were_not_there(null: str, trained: Any, tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        config[null] = None
        if null == "rank_pattern":
            for key in [key for key in tensors if not key.startswith("base_model.model.model.layers.0.mlp.down_proj")]:
                del tensors[key]
            config["r"] = len(tensors[some(tensors, "lora_A.weight")])

    assert AdapterFiles.read(edited(trained("decoder"), tmp_path / "adapter", change)).pairs


def test_names_of_tensors_that_other_tools_write(trained: Any, tmp_path: Path) -> None:
    def without_prefix(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)

    def with_name(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    def twice(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key.replace(".weight", ".default.weight"): tensor.clone() for key, tensor in tensors.items()})

    plain = AdapterFiles.read(trained("decoder"))
    bare = AdapterFiles.read(edited(trained("decoder"), tmp_path / "bare", without_prefix))
    named = AdapterFiles.read(edited(trained("decoder"), tmp_path / "named", with_name))
    assert (plain.prefixed, bare.prefixed, plain.named, named.named) == (True, False, False, True)
    assert set(bare.pairs) == set(named.pairs) == set(plain.pairs)
    with pytest.raises(AdapterError, match=r"is there twice, under two names"):
        AdapterFiles.read(edited(trained("decoder"), tmp_path / "twice", twice))


def test_an_adapted_output_layer_and_its_copy_of_the_base(bases: dict[str, Path], tmp_path: Path) -> None:
    """PEFT saves the vocabulary's frozen weights beside an adapter of it: these were not trained."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["decoder"]), config)
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    files = AdapterFiles.read(tmp_path)
    assert any("lm_head" in key for key in files.copies)
    assert not any("lm_head" in key for key in files.saved_modules)
    base = BaseLayers.of(files)
    assert list(base.vocabulary) == ["model.embed_tokens", "lm_head"]
    larger = {name: (rows + 1, width) for name, (rows, width) in base.vocabulary.items()}
    with pytest.raises(AdapterError, match="the vocabulary was resized in training"):
        BaseLayers(base.name, base.shapes, base.config, vocabulary=larger).check(files)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("nothing", "no such folder"),
        ("file", "is a file; give the folder"),
        ("model", "it is a whole model"),
        ("training", r"but checkpoint-3 in it does: give .*checkpoint-3"),
    ],
)
def test_what_is_there_in_place_of_an_adapter_is_said(made: str, message: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if made == "file":
        place.touch()
    elif made == "model":
        place.mkdir()
        (place / "config.json").touch()
    elif made == "training":
        (place / "checkpoint-3").mkdir(parents=True)
        (place / "checkpoint-3" / CONFIG).touch()
    with pytest.raises(AdapterError, match=message):
        AdapterFiles.read(place)


def test_a_damaged_base_model_is_one_line(bases: dict[str, Path], tmp_path: Path) -> None:
    for number, change in enumerate(({"hidden_size": "abc"}, {"num_attention_heads": 5}, {"model_type": "nothing"})):
        folder = shutil.copytree(bases["decoder"], tmp_path / str(number))
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
        with pytest.raises(AdapterError, match="cannot be read") as caught:
            BaseLayers.read(str(folder), "CAUSAL_LM")
        assert len(str(caught.value).splitlines()) == 1


def test_routed_experts_that_transformers_holds_as_one_tensor() -> None:
    experts = frozenset({"model.layers.0.mlp.experts"})
    base = BaseLayers("mixture", {"model.layers.0.self_attn.q_proj": (4, 4)}, None, fused_experts=experts)
    pair = LoraPair(torch.ones(1, 4), torch.ones(8, 1))
    base.check(AdapterFiles({}, {"model.layers.0.mlp.experts.7.w1": pair}, {}, Path("a")))
    with pytest.raises(AdapterError, match="does not have as a linear layer"):
        base.check(AdapterFiles({}, {"model.layers.1.mlp.experts.7.w1": pair}, {}, Path("a")))
