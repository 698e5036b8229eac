"""Runs with modules that train whole beside the adapters: both stages, narrow and quantised bases, reloading, serving."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, TaskType
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorank.errors import RecipeError, TargetError
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import keep_gradients
from lorank.runs.prepare import prepare
from lorank.runs.prune_adapter import prune_adapter
from lorank.runs.run import run
from lorank.serving.export import export
from lorank.serving.merge import merge
from lorank.serving.verify import verify

QUIET = Console(quiet=True)
IDS = torch.arange(5, 17)[None]
EMBEDDING, OUTPUT = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("i-lora", {"dtype": "bf16"}),
        pytest.param("igu-lora", {"dtype": "fp32"}, marks=pytest.mark.long),
        pytest.param("igu-lora", {"quantization": "4bit"}, marks=pytest.mark.long),
    ],
)
def test_modules_train_whole_are_saved_and_reload(
    method: str, model: dict[str, str], recipe_on: Any, tmp_path: Path
) -> None:
    if "quantization" in model:
        pytest.importorskip("bitsandbytes")
    recipe = recipe_on(method, {**model, "modules_to_save": ["embed_tokens", "lm_head"]})
    with (tmp_path / "said").open("w") as file:
        result = run(recipe, tmp_path / "out", Console(file=file, width=300))
    said = (tmp_path / "said").read_text()
    assert "model.embed_tokens, lm_head train whole, 4,096 parameters that are not in the budget" in said
    adapter = tmp_path / "out" / "adapter"
    assert "`model.embed_tokens` (2,048 parameters)" in (adapter / "README.md").read_text()
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert sum(one.numel() for key, one in tensors.items() if ".lora_" in key) == result.plan.spent
    assert result.results[method]["adapter_parameters"] == result.plan.spent
    before: Any = AutoModelForCausalLM.from_pretrained(recipe.model.name)
    for key, own in ((EMBEDDING, before.model.embed_tokens), (OUTPUT, before.lm_head)):
        assert tensors[key].dtype == torch.float32
        assert not torch.equal(tensors[key], own.weight.float())
        assert not torch.equal(tensors[key], tensors[key].bfloat16().float())  # trained in fp32
    options: dict[str, Any] = {"dtype": torch.float32 if model.get("dtype") == "fp32" else torch.bfloat16}
    if "quantization" in model:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    plain: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(recipe.model.name, **options), str(adapter)
    )
    keep_gradients(plain)  # packed for this processor, its layers would round in another way
    base = Pretrained(recipe.model.name, dtype=model.get("dtype"), quantization=model.get("quantization"))
    own = load_task_model(base, TaskType.CAUSAL_LM, ())
    ours = PeftModel.from_pretrained(own.model, str(adapter))
    assert torch.equal(plain(IDS).logits, ours(IDS).logits)
    table = plain.get_base_model().model.embed_tokens.modules_to_save["default"].weight
    assert torch.equal(table, tensors[EMBEDDING].to(table.dtype))


def test_tied_weights_stay_tied_through_training_reloading_and_merging(
    tied_decoder: Path, recipe_on: Any, tmp_path: Path
) -> None:
    recipe = recipe_on("lora", {"name": str(tied_decoder), "dtype": "fp32", "modules_to_save": ["lm_head"]})
    run(recipe, tmp_path / "out", QUIET)
    adapter = tmp_path / "out" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["ensure_weight_tying"]) == (["model.embed_tokens"], True)
    base = AutoModelForCausalLM.from_pretrained(tied_decoder, dtype=torch.float32)
    wanted = PeftModel.from_pretrained(base, str(adapter))(IDS).logits
    merge(adapter, tmp_path / "merged", dtype="float32")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(merged(IDS).logits, wanted, atol=1e-5, rtol=1e-5)


def test_engines_that_lose_or_refuse_them_are_named(recipe_on: Any, tmp_path: Path) -> None:
    run(recipe_on("lora", {"dtype": "fp32", "modules_to_save": ["lm_head"]}), tmp_path / "out", QUIET)
    served = export(tmp_path / "out" / "adapter", tmp_path / "served")
    said = {one.engine: (one.answer, one.why) for one in served.verdicts}
    assert said["peft"] == ("right", "")
    assert said["vllm"] == ("refused", "modules_to_save may be classifier or score only, not lm_head")
    assert said["llama.cpp"][0] == "refused"
    assert said["sglang"] == ("wrong", "modules trained whole are lost: lm_head")
    assert verify(tmp_path / "served", tmp_path / "out" / "adapter", "peft").verdicts[0].right
    merge(tmp_path / "out" / "adapter", tmp_path / "merged", dtype="float32")
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(recipe_on("lora").model.name, dtype=torch.float32),
        str(tmp_path / "served"),
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(merged(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_pruning_keeps_them(recipe_on: Any, tmp_path: Path) -> None:
    recipe = recipe_on("lora", {"modules_to_save": ["lm_head"]}, budget="r=2")
    run(recipe, tmp_path / "out", QUIET)
    prune_adapter(tmp_path / "out" / "adapter", "r=1", tmp_path / "small", recipe, console=QUIET)
    before, after = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "out", tmp_path / "small")
    )
    assert torch.equal(after[OUTPUT].float(), before[OUTPUT].to(after[OUTPUT].dtype).float())


def test_a_linear_layer_that_trains_whole_is_not_quantised(recipe_on: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    name = "model.layers.1.mlp.down_proj"
    recipe = recipe_on(
        "lora", {"quantization": "4bit", "modules_to_save": [name]}, exclude_modules=["layers.1.mlp.down_proj"]
    )
    base = Pretrained(recipe.model.name, quantization="4bit", modules_to_save=(name,))
    model: Any = load_task_model(base, TaskType.CAUSAL_LM, ()).model
    packed = {each for each, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(packed) == 13
    assert name not in packed
    run(recipe, tmp_path / "out", QUIET)
    assert f"base_model.model.{name}.weight" in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")


def test_a_target_that_would_train_whole_is_refused_with_a_name_that_is_not_there(recipe_on: Any) -> None:
    with pytest.raises(
        TargetError, match=r"'model\.layers\.0\.self_attn\.q_proj' would be trained whole .*exclude_modules"
    ):
        prepare(recipe_on("lora", {"modules_to_save": ["q_proj"]}), ("lora",))
    with pytest.raises(RecipeError, match=r"model\.modules_to_save: 'lm_heads' is no module .*did you mean lm_head"):
        prepare(recipe_on("lora", {"modules_to_save": ["lm_heads"]}), ("lora",))
