"""4 and 8 bit: what is packed, what stays as it is, and how many bytes are left."""

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import TaskType
from tests.conftest import save_tiny, tiny_writer
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from lorank.errors import AdapterError, RecipeError
from lorank.models.base_size import base_parameters
from lorank.models.loading import config_of, load_task_model, without_weights
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import PACKS_ON_CPU, check_quantization, keep_gradients, loading_options

KINDS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


@pytest.fixture(autouse=True)
def _needed() -> None:
    pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")


@pytest.mark.parametrize("quantization", KINDS)
def test_layers_are_packed_and_output_layer_and_heads_are_not(
    quantization: str, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Pretrained(str(tiny_writer("decoder", tiny_folder, tmp_path / "decoder")), quantization=quantization)
    model: Any = load_task_model(base, TaskType.CAUSAL_LM, ()).model
    packed = {name for name, module in model.named_modules() if type(module).__name__ == KINDS[quantization]}
    assert len(packed) == 14
    assert all(".layers." in name for name in packed)
    assert base_parameters(model) == base_parameters(without_weights(base, TaskType.CAUSAL_LM))
    reader = Pretrained(str(tiny_folder), quantization=quantization)
    task = load_task_model(reader, TaskType.SEQ_CLS, ("bad", "good"))
    packed = {name for name, module in task.model.named_modules() if type(module).__name__ == KINDS[quantization]}
    assert len(packed) == 12
    assert all(".layer." in name for name in packed)  # neither the classifier nor the pooler, which trains whole here
    assert {type(module) for name in task.heads for module in task.model.get_submodule(name).modules()} <= {
        torch.nn.Linear,
        torch.nn.Tanh,
        type(task.model.get_submodule("bert.pooler")),
    }


def test_4_bit_is_nf4_with_double_quantisation_and_computes_in_the_dtype(tiny_folder: Path, tmp_path: Path) -> None:
    wide = BertConfig(vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
    folder = save_tiny(BertModel(wide), tiny_folder, tmp_path / "wide")
    base = Pretrained(str(folder), dtype="bf16", quantization="4bit")
    layer: Any = load_task_model(base, TaskType.SEQ_CLS, ("a", "b")).model.get_submodule(
        "bert.encoder.layer.0.output.dense"
    )
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.numel() * layer.weight.element_size() == 64 * 128 // 2


def test_a_checkpoint_that_is_quantised_already_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    base = Pretrained(str(tiny_writer("decoder", tiny_folder, tmp_path / "plain")), quantization="4bit")
    check_quantization(base, config_of(base))
    load_task_model(base, TaskType.CAUSAL_LM, ()).model.save_pretrained(tmp_path / "packed")  # type: ignore[operator]
    packed = Pretrained(str(tmp_path / "packed"), quantization="8bit")
    with pytest.raises(RecipeError, match=r"is quantised already and is loaded as it is; leave it out"):
        check_quantization(packed, config_of(packed))


def test_without_bitsandbytes_it_is_said_what_to_install(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("lorank.models.quantization.version", missing)
    base = Pretrained(str(tiny_folder), quantization="4bit")
    with pytest.raises(RecipeError, match=r"4bit needs bitsandbytes, .*pip install bitsandbytes"):
        check_quantization(base, config_of(base))


@pytest.mark.parametrize("quantization", [None, "4bit", "8bit"])
def test_a_model_card_loads_the_base_as_it_was_trained_on(
    quantization: str | None, tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    base = Pretrained(
        str(tiny_writer("decoder", tiny_folder, tmp_path / "model")), dtype="bf16", quantization=quantization
    )
    options = eval(f"dict({loading_options(base, config_of(base))})", {"BitsAndBytesConfig": BitsAndBytesConfig})
    there = AutoModelForCausalLM.from_pretrained(base.name, **options)
    here: Any = load_task_model(base, TaskType.CAUSAL_LM, ()).model
    ids = torch.arange(8)[None]
    assert torch.equal(there(ids).logits, here(ids).logits)
    assert loading_options(Pretrained(str(tiny_folder)), config_of(Pretrained(str(tiny_folder)))) == ""


def test_an_evaluation_leaves_the_gradients_of_4_bit_layers(tiny_folder: Path, tmp_path: Path) -> None:
    """On a processor with AVX512-BF16 bitsandbytes would pack the layers in it, and no gradient would pass through them."""
    folder = tiny_writer("decoder", tiny_folder, tmp_path / "model")
    model: Any = load_task_model(Pretrained(str(folder), quantization="4bit"), TaskType.CAUSAL_LM, ()).model
    ids = torch.arange(8)[None]

    def gradient() -> torch.Tensor:
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
        model.train()(inputs_embeds=embedded, labels=ids).loss.backward()
        return embedded.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert torch.equal(gradient(), before)


def test_layers_that_are_packed_already_are_refused() -> None:
    class Packs(torch.nn.Linear):
        """As bitsandbytes' 4-bit layer is on such a processor."""

    layer = Packs(2, 2)
    setattr(layer, PACKS_ON_CPU, True)
    model = torch.nn.Sequential(layer)
    keep_gradients(model)
    assert not getattr(layer, PACKS_ON_CPU)
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)  # type: ignore[attr-defined]
    with pytest.raises(AdapterError, match=r"has packed the 4-bit weights of '0'.*load the model again"):
        keep_gradients(model)
