"""A base model's files decide only where they are certain; else it is built, and either way says the same."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config
from tests.serving.conftest import tiny_llama
from tests.serving.test_base_families import CASES, _adapter
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    set_seed,
)

from lorank.errors import AdapterError
from lorank.serving import base_layers
from lorank.serving.adapter_config import CONFIG
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles
from lorank.serving.base.stored import stored_layers
from lorank.serving.base_layers import BaseLayers
from lorank.serving.forms import FORMS
from lorank.serving.verify import engine_verdicts

MODEL = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"
Builds = Callable[[AdapterFiles], int]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """How often the base model is built to list its layers."""
    calls: list[str] = []
    built = base_layers._built
    monkeypatch.setattr(base_layers, "_built", lambda name, *rest: calls.append(name) or built(name, *rest))

    def count(files: AdapterFiles) -> int:
        calls.clear()
        BaseLayers.of(files)
        return len(calls)

    return count


def outcome(files: AdapterFiles) -> Any:
    """Layers, verdicts and the form for all engines; or what is refused."""
    try:
        layers = BaseLayers.of(files)
        verdicts = engine_verdicts(files, None, layers)
        served = FORMS["any"](files, layers)
    except AdapterError as error:
        return str(error)
    named = {key: value for key, value in vars(layers).items() if key not in ("config", "build")}
    shapes = {module: (pair.a.shape, pair.b.shape) for module, pair in served.pairs.items()}
    return named, list(layers.shapes), verdicts, served.config, list(shapes.items())


def assert_both_ways_agree(files: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = outcome(files)
    with monkeypatch.context() as patched:
        patched.setattr(base_layers, "stored_layers", lambda *given: None)
        assert outcome(files) == found
    return found


def bert(family: Any, **options: Any) -> Callable[[], Any]:
    return lambda: family(tiny_config(**options))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0))


def mixtral() -> Any:
    sizes = {"num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 64}
    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8, **sizes
        )
    )


QV = ["q_proj", "v_proj"]
HEADED = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
# The base model, PEFT's options, and whether its files are enough.
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], bool]] = {
    "decoder": (lambda: LlamaForCausalLM(tiny_llama()), {"target_modules": QV}, True),
    "tied decoder": (lambda: LlamaForCausalLM(tiny_llama(tie_word_embeddings=True)), {"target_modules": QV}, True),
    "all linear layers": (
        lambda: LlamaForCausalLM(tiny_llama(tie_word_embeddings=True)),
        {"target_modules": "all-linear"},
        True,
    ),
    "an expression": (
        lambda: LlamaForCausalLM(tiny_llama()),
        {"target_modules": r".*layers\.[01]\..*(q|up)_proj"},
        True,
    ),
    "decoder saved without its head": (lambda: LlamaModel(tiny_llama()), {"target_modules": QV}, True),
    "decoder as a classifier": (
        lambda: LlamaForCausalLM(tiny_llama()),
        {"target_modules": QV, "task_type": "SEQ_CLS"},
        True,
    ),
    "encoder saved without its prefix": (bert(BertModel), {"target_modules": ["query", "value"], **HEADED}, True),
    "encoder of another task": (bert(BertForMaskedLM), {"target_modules": ["query", "dense"], **HEADED}, False),
    "adapted output layer": (lambda: LlamaForCausalLM(tiny_llama()), {"target_modules": [*QV, "lm_head"]}, False),
    "adapted output layer, tied": (
        lambda: LlamaForCausalLM(tiny_llama(tie_word_embeddings=True)),
        {"target_modules": [*QV, "lm_head"]},
        False,
    ),
    "no task type": (lambda: LlamaForCausalLM(tiny_llama()), {"target_modules": QV, "task_type": None}, False),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, False),
    "experts": (mixtral, {"target_modules": QV}, False),
}


@pytest.mark.parametrize("case", MODELS)
def test_verdicts_are_those_of_the_built_model(
    case: str, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options, enough = MODELS[case]
    set_seed(0)
    make().save_pretrained(tmp_path / "base")
    options = {"task_type": "CAUSAL_LM", **options}
    labels = {"num_labels": 5} if options["task_type"] == "SEQ_CLS" else {}
    family = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    base = family.from_pretrained(tmp_path / "base", ignore_mismatched_sizes=True, **labels)
    get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **options)).save_pretrained(
        str(tmp_path / "adapter"), save_embedding_layers=False
    )
    files = AdapterFiles.read(tmp_path / "adapter")
    assert (builds(files) == 0) == enough
    assert not isinstance(assert_both_ways_agree(files, monkeypatch), str)


def test_an_adapted_head_of_other_labels(tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(BertModel)().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    adapted = LoraConfig(r=2, target_modules=["query", "classifier"], init_lora_weights=False)
    get_peft_model(base, adapted).save_pretrained(str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": "SEQ_CLS"}))
    files = AdapterFiles.read(tmp_path / "adapter")
    assert builds(files)
    assert BaseLayers.of(files).shapes["classifier"] == files.pairs["classifier"].shape == (5, 16)
    assert_both_ways_agree(files, monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_images_sound_and_pictures_with_text_are_built(
    case: str, tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    _adapter(case, tmp_path)
    files = AdapterFiles.read(tmp_path / "adapter")
    assert builds(files)
    assert_both_ways_agree(files, monkeypatch)


@pytest.mark.parametrize("name", ["encoder", "decoder", "encoder-decoder"])
def test_trained_adapters_of_mixed_ranks(name: str, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(assert_both_ways_agree(AdapterFiles.read(trained(name)), monkeypatch), str)


def changed_adapter(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> AdapterFiles:
    """An adapter of one rank whose tensors are changed."""
    shutil.copytree(source, target)
    config, tensors = json.loads((target / CONFIG).read_text()), load_file(target / WEIGHTS)
    tensors = {key: tensor[:1] if "lora_A" in key else tensor[:, :1] for key, tensor in tensors.items()}
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps({**config, "r": 1, "rank_pattern": {}, "alpha_pattern": {}}))
    return AdapterFiles.read(target)


def _rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for key in [key for key in tensors if old in key]:
        tensors[key.replace(old, new)] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: _rename(t, "model.model.layers", "model.layers"), "did you mean model.layers"),
        (lambda t: _rename(t, "layers.2.", "layers.7."), "did you mean model.layers"),
        (lambda t: _rename(t, "layers.1.mlp.up_proj", "layers.1.input_layernorm"), "as a linear layer"),
        (lambda t: _rename(t, "layers.1.mlp.up_proj", "embed_tokens"), "does not have as a linear layer"),
        (lambda t: t.update({k: v[:-1] for k, v in t.items() if "up_proj.lora_B" in k}), "is for a layer of shape"),
        (lambda t: t.update({k: v[:, :-1] for k, v in t.items() if "up_proj.lora_A" in k}), "is for a layer of shape"),
    ],
)
def test_an_adapter_of_another_model_is_refused_in_the_same_words(
    change: Any, message: str, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = changed_adapter(trained("decoder"), tmp_path / "adapter", change)
    assert message in assert_both_ways_agree(files, monkeypatch)


def test_an_adapter_against_another_whose_names_are_not_the_bases(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = AdapterFiles.read(trained("decoder"))
    other = changed_adapter(trained("decoder"), tmp_path / "other", lambda t: _rename(t, "layers.2.", "layers.7."))
    said = []
    for _ in range(2):
        with pytest.raises(AdapterError, match=r"did you mean model.layers") as caught:
            engine_verdicts(files, other, BaseLayers.of(files))
        said.append(str(caught.value))
        monkeypatch.setattr(base_layers, "stored_layers", lambda *given: None)
    assert said[0] == said[1]


Tensors = dict[str, torch.Tensor]


def edited_base(source: Path, target: Path, config: Mapping[str, Any], change: Callable[[Tensors], Any]) -> str:
    shutil.copytree(source, target)
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, **config}))
    tensors = load_file(target / MODEL)
    change(tensors)
    save_file(tensors, target / MODEL, {"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "bitsandbytes"}}, {"auto_map": {"AutoConfig": "x.X"}},
        {"model_type": "cohere"}, {"model_type": None}, {"model_type": ["llama"]}, {"num_hidden_layers": 2},
        {"num_hidden_layers": 4}, {"num_hidden_layers": 0}, {"num_hidden_layers": True}, {"num_hidden_layers": "3"},
        {"num_attention_heads": 5}, {"num_attention_heads": 2}, {"num_attention_heads": 0}, {"num_key_value_heads": None},
        {"num_key_value_heads": 4}, {"head_dim": 4}, {"hidden_size": "abc"}, {"hidden_size": 64},
        {"intermediate_size": 49}, {"vocab_size": 63}, {"pad_token_id": 64}, {"text_config": {"hidden_size": 8}},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_the_weights_do_not_bear_out(config: Any, bases: dict[str, Path], tmp_path: Path) -> None:
    assert stored_layers(str(bases["decoder"]), "CAUSAL_LM", [QUERY]) is not None
    name = edited_base(bases["decoder"], tmp_path / "base", config, lambda tensors: None)
    assert stored_layers(name, "CAUSAL_LM", [QUERY]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(f"{QUERY}.weight"),
        lambda t: t.pop("model.embed_tokens.weight"),
        lambda t: t.update({f"{QUERY}.weight": t[f"{QUERY}.weight"].T.contiguous()[:16]}),
        lambda t: t.update({f"{QUERY}.weight": t[f"{QUERY}.weight"].to(torch.int8)}),
        lambda t: t.update({"model.layers.0.mlp.experts.0.w1.weight": torch.ones(2, 2)}),
        lambda t: t.update({f"{QUERY}.weight_scale": torch.ones(2, 2)}),
        lambda t: _rename(t, "model.layers", "model.language_model.layers"),
        lambda t: _rename(t, "model.", "transformer."),
    ],
)
def test_weights_that_are_not_the_layers_of_the_config(change: Any, bases: dict[str, Path], tmp_path: Path) -> None:
    name = edited_base(bases["decoder"], tmp_path / "base", {}, change)
    assert stored_layers(name, "CAUSAL_LM", [QUERY]) is None


UNUSUAL: list[dict[str, Any]] = [
    {"add_cross_attention": True},
    {"pruned_heads": {"0": [1]}},
    {"num_labels": 4},
    {"_num_labels": 4},
    {"is_encoder_decoder": True},
]


def test_an_encoder_with_layers_for_another_model(bases: dict[str, Path], tmp_path: Path) -> None:
    query = "bert.encoder.layer.0.attention.self.query"
    assert stored_layers(str(bases["encoder"]), "SEQ_CLS", [query]) is not None
    for number, options in enumerate(UNUSUAL):
        name = edited_base(bases["encoder"], tmp_path / str(number), options, lambda tensors: None)
        assert stored_layers(name, "SEQ_CLS", [query]) is None
    for task in ("CAUSAL_LM", "TOKEN_CLS", "POETRY"):
        assert stored_layers(str(bases["encoder"]), task, [query]) is None
    for module in ("encoder.layer.0.attention.self.query", "bert.pooler.dense", "classifier", "bert"):
        assert stored_layers(str(bases["encoder"]), "SEQ_CLS", [query, module]) is None


def test_numbers_of_positions_in_old_files_are_no_layer(bases: dict[str, Path], tmp_path: Path) -> None:
    positions = {"bert.embeddings.position_ids": torch.arange(8)[None]}
    name = edited_base(bases["encoder"], tmp_path / "base", {}, lambda tensors: tensors.update(positions))
    found = stored_layers(name, "SEQ_CLS", ["bert.encoder.layer.0.attention.self.query"])
    assert found is not None
    assert list(found.shapes.items()) == list(BaseLayers.read(name, "SEQ_CLS").shapes.items())


def test_an_encoder_and_decoder_that_share_no_embedding(bases: dict[str, Path], tmp_path: Path) -> None:
    key = "model.encoder.layers.0.self_attn.q_proj"
    assert stored_layers(str(bases["encoder-decoder"]), "SEQ_2_SEQ_LM", [key]) is not None
    changes: list[dict[str, Any]] = [{"share_encoder_decoder_embeddings": False}, {"decoder_vocab_size": 40}]
    for number, config in enumerate([*changes, {"is_encoder_decoder": False}]):
        name = edited_base(bases["encoder-decoder"], tmp_path / str(number), config, lambda tensors: None)
        assert stored_layers(name, "SEQ_2_SEQ_LM", [key]) is None


def test_weights_in_shards(bases: dict[str, Path], tmp_path: Path) -> None:
    whole = stored_layers(str(bases["decoder"]), "CAUSAL_LM", [QUERY])
    LlamaForCausalLM.from_pretrained(bases["decoder"]).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = stored_layers(str(tmp_path), "CAUSAL_LM", [QUERY])
    assert whole is not None
    assert found is not None
    assert found.shapes == whole.shapes
    shard = next(iter(sorted(tmp_path.glob("model-*.safetensors"))))
    kept = shard.read_bytes()
    for broken in (b"", kept[:7], kept[:20], b"\xff" * 100):
        shard.write_bytes(broken)
        assert stored_layers(str(tmp_path), "CAUSAL_LM", [QUERY]) is None
    shard.unlink()
    assert stored_layers(str(tmp_path), "CAUSAL_LM", [QUERY]) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"model_type": "llama"}'])
def test_a_damaged_config(content: str, bases: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bases["decoder"], tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(content)
    assert stored_layers(str(tmp_path / "base"), "CAUSAL_LM", [QUERY]) is None


def test_names_of_the_hub_are_looked_up_in_its_cache(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(bases["decoder"], snapshot)
    (tmp_path / "models--somebody--tiny" / "refs").mkdir()
    (tmp_path / "models--somebody--tiny" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert stored_layers("somebody/tiny", "CAUSAL_LM", [QUERY]) is not None
    (snapshot / MODEL).unlink()
    for name in ("somebody/tiny", "somebody/else", "nowhere", "a/b/c", "../x", "sp ace/x"):
        assert stored_layers(name, "CAUSAL_LM", [QUERY]) is None


def test_a_model_that_was_not_built_is_built_for_old_names(bases: dict[str, Path], trained: Any) -> None:
    layers = BaseLayers.of(AdapterFiles.read(trained("decoder")))
    assert layers.build is not None
    assert isinstance(layers.build(), transformers.LlamaForCausalLM)
