"""Each known architecture beside the model that transformers builds: the same layers, in the same order."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForSequenceClassification as Classifier
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lorank.serving.base.architectures import ARCHITECTURES
from lorank.serving.base.stored import StoredLayers, stored_layers
from lorank.serving.base_layers import BaseLayers

DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 32,
}  # fmt: skip
ENCODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "pad_token_id": 0,
}  # fmt: skip
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "pad_token_id": 0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 32,
}  # fmt: skip
PAIRS = [kind for kind, architecture in ARCHITECTURES.items() if architecture.encodes_and_decodes]
DECODERS = [kind for kind, architecture in ARCHITECTURES.items() if "CAUSAL_LM" in architecture.heads]
ENCODERS = [kind for kind in ARCHITECTURES if kind not in (*DECODERS, *PAIRS)]
TASKS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": Classifier, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1},
    {"num_key_value_heads": 1, "head_dim": 16},
    {"num_labels": 5},
    {"id2label": {0: "good"}},
]


def config_of(kind: str, **options: Any) -> Any:
    sizes = DISTILBERT if kind == "distilbert" else ENCODER if kind in ENCODERS else BART if kind in PAIRS else DECODER
    if kind == "phi3":
        options.pop("head_dim", None)  # no field of its own
    known = options if kind in DECODERS else {key: value for key, value in options.items() if "head" not in key}
    return AutoConfig.for_model(kind, **{**sizes, **known})


def saved(family: Any, config: Any, folder: Path) -> Path:
    family.from_config(config).save_pretrained(folder)
    return folder


def families_of(kind: str) -> list[Any]:
    """Classes that a base model may have been saved from."""
    if kind in PAIRS:
        return [AutoModel, AutoModelForSeq2SeqLM]
    return [AutoModel, AutoModelForCausalLM, Classifier] if kind in DECODERS else [AutoModel, Classifier]


def adapted(folder: Path, task: str) -> list[str]:
    """Names that an adapter of the blocks has."""
    built = BaseLayers.read(str(folder), task)
    return [name for name in built.shapes if any(part.isdigit() for part in name.split("."))]


def assert_same(stored: StoredLayers | None, built: BaseLayers) -> None:
    assert stored is not None
    for field in fields(StoredLayers):
        one, other = getattr(stored, field.name), getattr(built, field.name)
        if field.name == "config":
            assert one.model_type == other.model_type
        elif isinstance(other, dict):
            assert list(one.items()) == list(other.items()), field.name
        else:
            assert one == other, field.name
    assert not built.transposed
    assert not built.fused_experts


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layers_are_those_of_the_built_model(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(kind, **options)
    for family in families_of(kind):
        folder = str(saved(family, config, tmp_path / family.__name__))
        for task in ARCHITECTURES[kind].heads:
            assert_same(stored_layers(folder, task, adapted(Path(folder), task)), BaseLayers.read(folder, task))


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_with_another_head(kind: str, tmp_path: Path) -> None:
    folder = str(saved(AutoModelForMaskedLM, config_of(kind), tmp_path))
    assert_same(
        stored_layers(folder, "SEQ_CLS", adapted(tmp_path, "SEQ_CLS")),
        BaseLayers.read(folder, "SEQ_CLS"),
    )


# What old checkpoints leave out of config.json: then the class's default counts, which is ours too, or the model is built.
@pytest.mark.parametrize(
    "left_out",
    [
        *("tie_word_embeddings", "head_dim", "num_key_value_heads", "pad_token_id", "architectures", "id2label"),
        *("is_encoder_decoder", "decoder_vocab_size", "share_encoder_decoder_embeddings"),
    ],
)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_field_that_the_config_leaves_out(kind: str, left_out: str, tmp_path: Path) -> None:
    config = config_of(kind)
    content = json.loads(config.to_json_string(use_diff=False))
    content.pop(left_out, None)
    # Padding tokens are numbers up to 58100 where nothing else is said.
    content |= {"vocab_size": 58101} | ({"decoder_vocab_size": 58101} if left_out != "decoder_vocab_size" else {})
    (tmp_path / "config.json").write_text(json.dumps(content))
    task = next(iter(ARCHITECTURES[kind].heads))
    built = BaseLayers.read(str(tmp_path), task)
    # Weights as the class would have them with its own default.
    family = Classifier if kind in ENCODERS else families_of(kind)[1]
    saved(family, AutoConfig.from_pretrained(tmp_path), tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text(json.dumps(content))
    stored = stored_layers(str(tmp_path / "whole"), task, adapted(tmp_path, task))
    if left_out == "num_key_value_heads" and kind in DECODERS:
        assert stored is None
    else:
        assert_same(stored, built)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_transformers_renames_no_weight_of_it(kind: str) -> None:
    assert get_checkpoint_conversion_mapping(kind) is None
    config = config_of(kind)
    for family in families_of(kind):
        with torch.device("meta"):
            model = family.from_config(config)
        assert get_checkpoint_conversion_mapping(type(model).__name__) is None
        assert not getattr(type(model), "_checkpoint_conversion_mapping", None)
        assert type(model).base_model_prefix == ARCHITECTURES[kind].prefix


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_defaults_are_those_of_the_class(kind: str) -> None:
    default = AutoConfig.for_model(kind)
    assert default.pad_token_id == ARCHITECTURES[kind].padding
    assert kind in ENCODERS or default.tie_word_embeddings == ARCHITECTURES[kind].tied


def test_the_classes_are_those_that_peft_loads() -> None:
    for kind, architecture in ARCHITECTURES.items():
        for task, family in TASKS.items():
            if task in architecture.heads:
                assert type(AutoConfig.for_model(kind)) in family._model_mapping
