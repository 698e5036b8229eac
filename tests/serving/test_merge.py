"""Adapters added to their base models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.serving.conftest import FAMILIES, LABELS, logits_of, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, set_seed
from transformers.quantizers import HfQuantizer

from lorank.errors import AdapterError, LorankWarning, OutputError
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.export import export
from lorank.serving.merge import merge
from lorank.serving.verify import engine_verdicts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_merged_model_computes_what_the_adapter_does(
    name: str, bases: dict[str, Path], trained: Any, tmp_path: Path
) -> None:
    merge(trained(name), tmp_path / "merged", max_shard_size="20KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    wanted = logits_of(name, bases[name], trained(name))
    torch.testing.assert_close(logits_of(name, tmp_path / "merged"), wanted, atol=2e-5, rtol=2e-5)


def test_a_padded_adapter_merges_to_the_same_and_a_dtype_can_be_chosen(trained: Any, tmp_path: Path) -> None:
    export(trained("decoder"), tmp_path / "served")
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


class TestLabelNames:
    """A merged classifier is called by names, not LABEL_0."""

    def test_they_come_from_the_file_beside_the_adapter(self, trained: Any, tmp_path: Path) -> None:
        merge(trained("encoder"), tmp_path / "merged")
        config = AutoConfig.from_pretrained(tmp_path / "merged")
        assert config.id2label == dict(enumerate(LABELS))
        assert config.label2id == {name: number for number, name in enumerate(LABELS)}
        assert config.problem_type == "single_label_classification"

    def test_they_go_along_with_an_export(self, trained: Any, tmp_path: Path) -> None:
        export(trained("encoder"), tmp_path / "served")
        merge(tmp_path / "served", tmp_path / "merged")
        assert AutoConfig.from_pretrained(tmp_path / "merged").id2label == dict(enumerate(LABELS))

    @pytest.mark.parametrize("content", ['["a", "b"]', '["a", "b", "b"]', '["a", "b", 3]', '{"a": 0}', "[", "\xff"])
    def test_a_file_that_does_not_fit_is_refused(self, content: str, trained: Any, tmp_path: Path) -> None:
        shutil.copytree(trained("encoder"), tmp_path / "adapter")
        (tmp_path / "adapter" / "label_names.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(AdapterError, match=r"label_names.json.*put it right or take it away"):
            merge(tmp_path / "adapter", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    @pytest.mark.parametrize("own", [None, ["no", "yes", "perhaps"]])
    def test_without_the_file_one_line_says_what_they_are(
        self, own: list[str] | None, bases: dict[str, Path], trained: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(trained("encoder"), tmp_path / "adapter")
        (tmp_path / "adapter" / "label_names.json").unlink()
        shutil.copytree(bases["encoder"], tmp_path / "base")
        if own is not None:
            config = AutoConfig.from_pretrained(tmp_path / "base")
            config.id2label = dict(enumerate(own))
            config.save_pretrained(tmp_path / "base")
        names = own or ["LABEL_0", "LABEL_1", "LABEL_2"]
        with pytest.warns(LorankWarning, match=f"has no label_names.json, so .* are called '{names[0]}', '{names[1]}'"):
            merge(tmp_path / "adapter", tmp_path / "merged", base=str(tmp_path / "base"))
        assert AutoConfig.from_pretrained(tmp_path / "merged").id2label == dict(enumerate(names))


@pytest.mark.parametrize("stored", ["4-bit", "8-bit", "4-bit in bfloat16"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_base_that_is_saved_quantised_is_merged_as_the_weights_that_it_stands_for(
    stored: str, dtype: str, tmp_path: Path
) -> None:
    set_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    full = LlamaForCausalLM(tiny_llama(**sizes)).to(torch.bfloat16 if "bfloat16" in stored else torch.float32)
    full.save_pretrained(tmp_path / "full")
    bits: dict[str, Any] = {"load_in_8bit": True} if stored == "8-bit" else {"load_in_4bit": True}
    quantised = BitsAndBytesConfig(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **bits)
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=quantised, dtype="auto"
    ).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", tmp_path / "merged", dtype=dtype)

    kind = full.dtype if dtype == "auto" else getattr(torch, dtype)
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in saved
    assert saved["dtype"] == str(kind).removeprefix("torch.")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(merged) == set(load_file(tmp_path / "full" / "model.safetensors"))
    assert {tensor.dtype for tensor in merged.values()} == {kind}
    stands_for = AutoModelForCausalLM.from_pretrained(tmp_path / "base").dequantize(torch.float32).state_dict()
    files = AdapterFiles.read(tmp_path / "adapter")
    scales = files.peft_scales()
    for key, tensor in merged.items():
        wanted = stands_for[key].float()
        if pair := files.pairs.get(key.removesuffix(".weight")):
            update = scales[key.removesuffix(".weight")] * pair.b.float() @ pair.a.float()
            assert update.abs().max() > 1e-2
            wanted = wanted + update
        ulp = torch.finfo(kind).eps
        torch.testing.assert_close(tensor.float(), wanted, atol=2 * ulp, rtol=2 * ulp)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").model.layers[0].mlp.down_proj.weight.dtype == kind


def test_a_quantisation_that_cannot_be_undone_is_refused(
    bases: dict[str, Path], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quantiser(HfQuantizer):
        """As of a format that transformers can load and not turn back."""

        quantization_config = SimpleNamespace(quant_method="gptq")

        def __init__(self) -> None:
            pass

        is_trainable = is_serializable = _process_model_before_weight_loading = None

    monkeypatch.setattr(Quantiser, "__abstractmethods__", frozenset())
    monkeypatch.setattr(LlamaForCausalLM, "hf_quantizer", Quantiser(), raising=False)
    with pytest.raises(AdapterError, match=r"saved in gptq, which transformers cannot turn back .* --base"):
        merge(trained("decoder"), tmp_path / "merged")


@pytest.mark.parametrize("part", ["a", "b"])
def test_an_adapter_that_changes_nothing_is_merged_and_verified_with_one_warning(
    part: str, trained: Any, tmp_path: Path
) -> None:
    files = AdapterFiles.read(trained("decoder"))
    idle = {m: replace(pair, **{part: getattr(pair, part) * 1e-35}) for m, pair in files.pairs.items()}
    replace(files, pairs=idle).write(tmp_path / "idle")
    for act in (
        lambda: merge(tmp_path / "idle", tmp_path / "merged"),
        lambda: engine_verdicts(AdapterFiles.read(tmp_path / "idle")),
        lambda: export(tmp_path / "idle", tmp_path / "served", "peft"),
    ):
        with pytest.warns(LorankWarning) as caught:
            act()
        (said,) = [str(warning.message) for warning in caught if warning.category is LorankWarning]
        assert said.startswith(f"{tmp_path / 'idle'} changes nothing: B (or A) of every module is below 1e-30")
    first = next(iter(files.pairs))
    replace(files, pairs={**idle, first: files.pairs[first]}).write(tmp_path / "one works")
    engine_verdicts(AdapterFiles.read(tmp_path / "one works"))


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


def test_a_tokenizer_beside_the_adapter_that_cannot_be_read_is_said(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained("decoder"), adapter := tmp_path / "adapter")
    (adapter / "tokenizer_config.json").write_text("[1]")
    with pytest.warns(LorankWarning, match=r"the tokenizer there cannot be read \(tokenizer_config.json: it is \[1\]"):
        merge(adapter, tmp_path / "merged")
