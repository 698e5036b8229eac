"""Verify, export and merge on bases that are no plain text models: images, speech, pictures with text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import set_seed

from lorank.errors import AdapterError
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.export import export
from lorank.serving.merge import merge
from lorank.serving.verify import engine_verdicts

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 8}
TEXT = {"vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8}
SOUND = {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "vocab_size": 32,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 24,
}  # fmt: skip
SPEECH = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8, "pad_token_id": 0,
    "max_source_positions": 16, "max_target_positions": 16, "decoder_start_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _made(name: str, kind: str = "", **options: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}{kind}")(config)


def _gemma3() -> Any:
    vision = {"image_size": 28, "patch_size": 14, **SIZES}
    ids = {"image_token_index": 63, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 1}
    return _made("Gemma3", "ForConditionalGeneration", text_config={**TEXT, **SIZES}, vision_config=vision, **ids)


def _llava() -> Any:
    parts = {
        "text_config": {"model_type": "llama", **TEXT, **SIZES},
        "vision_config": {"model_type": "clip_vision_model", **IMAGE, **SIZES},
    }
    return _made("Llava", "ForConditionalGeneration", image_token_index=63, **parts)


def _clip() -> Any:
    parts = {"text_config": {"vocab_size": 64, **SIZES}, "vision_config": {**IMAGE, **SIZES}}
    return _made("CLIP", "Model", projection_dim=8, **parts)


# What is saved as the base, the class that is trained (None: the same), labels, and PEFT's options.
Case = tuple[Callable[[], Any], str | None, int, dict[str, Any]]
CASES: dict[str, Case] = {
    "images": (lambda: _made("ViT", "ForImageClassification", num_labels=3, **IMAGE, **SIZES), None, 3, {}),
    "images, a head of its own": (
        lambda: _made("ViT", "Model", **IMAGE, **SIZES),
        "ViTForImageClassification",
        30,
        {"modules_to_save": ["classifier"]},
    ),
    "images and texts": (_clip, None, 0, {}),
    "sound, two layers in the head": (
        lambda: _made("Wav2Vec2", "Model", **SOUND, **SIZES),
        "Wav2Vec2ForSequenceClassification",
        40,
        {"modules_to_save": ["projector", "classifier"]},
    ),
    "speech": (lambda: _made("Whisper", "ForConditionalGeneration", **SPEECH), None, 0, {"task_type": "SEQ_2_SEQ_LM"}),
    "vision-language": (_llava, None, 0, {"task_type": "CAUSAL_LM"}),
    "vision-language, no task type": (_gemma3, None, 0, {}),
}


def _adapter(case: str, folder: Path) -> PeftModel:
    make, family, labels, options = CASES[case]
    set_seed(0)
    base = make()
    base.save_pretrained(folder / "base")
    count = {"num_labels": labels} if labels else {}
    base = getattr(transformers, family or type(base).__name__).from_pretrained(folder / "base", **count)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    )
    model.save_pretrained(str(folder / "adapter"))
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*has no label_names.json")
def test_bases_of_every_kind_are_verified_exported_and_merged(case: str, tmp_path: Path) -> None:
    model = _adapter(case, tmp_path)
    exported = export(tmp_path / "adapter", tmp_path / "served")
    assert not exported.unread_base
    assert {verdict.engine for verdict in exported.verdicts if verdict.right} >= {"peft"}
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = type(model.get_base_model()).from_pretrained(tmp_path / "merged").state_dict()
    wanted = model.merge_and_unload().state_dict()
    assert set(merged) == set(wanted)
    for key, tensor in wanted.items():
        torch.testing.assert_close(merged[key], tensor, atol=1e-6, rtol=1e-6)


def test_an_adapted_head_for_other_labels_than_the_base_models_is_no_other_model(tmp_path: Path) -> None:
    set_seed(0)
    _made("ViT", "ForImageClassification", num_labels=3, **IMAGE, **SIZES).save_pretrained(tmp_path / "base")
    base = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=7, ignore_mismatched_sizes=True
    )
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(str(tmp_path / "adapter"))
    files = AdapterFiles.read(tmp_path / "adapter")
    assert BaseLayers.of(files).shapes["classifier"] == files.pairs["classifier"].shape == (7, 16)


def test_a_config_that_lacks_what_its_class_needs_is_one_line(tmp_path: Path) -> None:
    config = transformers.ChameleonConfig(**SIZES)  # without a vocabulary map
    config.architectures = ["ChameleonForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"cannot be read: .*; give its hub name or folder as --base"):
        BaseLayers.read(str(tmp_path), None)


OLD = ("model.model.language_model.", "model.language_model.model.")


def _with_old_names(folder: Path) -> Path:
    """The tensors of an adapter as transformers before 4.52 named them."""
    path = folder / WEIGHTS
    tensors = load_file(path)
    save_file({key.replace(*OLD): tensor for key, tensor in tensors.items()}, path, {"format": "pt"})
    assert load_file(path).keys() != tensors.keys()
    return folder


@pytest.mark.parametrize("make", [_gemma3, _llava])
def test_names_from_before_transformers_4_52_are_read_as_peft_reads_them(make: Any, tmp_path: Path) -> None:
    set_seed(0)
    make().save_pretrained(tmp_path / "base")
    load = transformers.AutoModelForImageTextToText.from_pretrained
    config = LoraConfig(
        r=2, target_modules=r".*language_model.*(q_proj|o_proj)", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(load(tmp_path / "base"), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    new = AdapterFiles.read(tmp_path / "adapter")
    old = AdapterFiles.read(_with_old_names(tmp_path / "adapter"))
    layers = BaseLayers.of(old)
    assert not set(old.pairs) & set(layers.shapes)
    assert {v.engine: v.answer for v in engine_verdicts(old, None, layers)} == {
        v.engine: v.answer for v in engine_verdicts(new, None, layers)
    }
    assert all(v.right for v in engine_verdicts(old, new, layers, ["peft"]))
    export(tmp_path / "adapter", tmp_path / "served")
    served = AdapterFiles.read(tmp_path / "served")
    assert set(served.pairs) >= set(new.pairs)
    merge(tmp_path / "adapter", tmp_path / "merged")
    ids = {"input_ids": torch.arange(5, 12)[None]}
    with torch.no_grad():
        wanted = model.eval()(**ids).logits
        for found in (
            load(tmp_path / "merged"),
            PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "served"),
        ):
            torch.testing.assert_close(found.eval()(**ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_patterns_with_names_that_peft_no_longer_matches_are_refused(tmp_path: Path) -> None:
    set_seed(0)
    _gemma3().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    target = "model.language_model.layers.0.self_attn.q_proj"
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", alpha_pattern={f"^{target}$": 32})
    get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace("^model.language_model.", "^language_model.model."))
    files = AdapterFiles.read(_with_old_names(tmp_path / "adapter"))
    with pytest.raises(
        AdapterError, match=r"alpha_pattern names 'language_model.model.layers.0.* has as 'model.language"
    ):
        engine_verdicts(files, None, BaseLayers.of(files))
