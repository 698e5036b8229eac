"""Adapters added to their base models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.serving.conftest import FAMILIES, logits_of, tiny_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM, set_seed

from lorank.errors import AdapterError, OutputError
from lorank.serving.export import export_adapter
from lorank.serving.merge import merge


@pytest.mark.parametrize("name", FAMILIES)
def test_a_merged_model_computes_what_the_adapter_does(
    name: str, bases: dict[str, Path], trained: Any, tmp_path: Path
) -> None:
    merge(trained(name), tmp_path / "merged", max_shard_size="20KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    wanted = logits_of(name, bases[name], trained(name))
    torch.testing.assert_close(logits_of(name, tmp_path / "merged"), wanted, atol=2e-5, rtol=2e-5)


def test_a_padded_adapter_merges_to_the_same_and_a_dtype_can_be_chosen(trained: Any, tmp_path: Path) -> None:
    export_adapter(trained("decoder"), tmp_path / "served")
    merge(tmp_path / "served", tmp_path / "one", dtype="bfloat16")
    merge(trained("decoder"), tmp_path / "two", dtype="bfloat16")
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, two[key], atol=0.02, rtol=0.02)


def test_variants_that_peft_can_merge_are_merged(bases: dict[str, Path], tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["decoder"]), config)
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "dora"))
    merge(tmp_path / "dora", tmp_path / "merged")
    wanted = logits_of("decoder", bases["decoder"], tmp_path / "dora")
    torch.testing.assert_close(logits_of("decoder", tmp_path / "merged"), wanted, atol=2e-5, rtol=2e-5)


def test_an_output_layer_that_shares_its_weight_is_not_merged(tmp_path: Path) -> None:
    set_seed(0)
    LlamaForCausalLM(tiny_llama(tie_word_embeddings=True)).save_pretrained(tmp_path / "tied")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    with pytest.raises(AdapterError, match="shares its weight with the input embedding"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_refusals(bases: dict[str, Path], trained: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"does not have as a linear layer|cannot be read"):
        merge(trained("decoder"), tmp_path / "merged", base=str(bases["encoder"]))
    with pytest.raises(AdapterError, match="dtype 'int8' is unknown"):
        merge(trained("decoder"), tmp_path / "merged", dtype="int8")
    with pytest.raises(AdapterError, match="max_shard_size 'abc' cannot be read"):
        merge(trained("decoder"), tmp_path / "merged", max_shard_size="abc")
    (tmp_path / "merged").touch()
    with pytest.raises(OutputError, match="is there already"):
        merge(trained("decoder"), tmp_path / "merged")
