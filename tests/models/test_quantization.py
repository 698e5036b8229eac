"""4 and 8 bit: what is packed, what stays as it is, and how many bytes are left."""

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import TaskType
from tests.conftest import save_tiny, tiny_writer
from tests.test_processes import launched
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from lorank.errors import AdapterError, LorankWarning, RecipeError, TrainingError
from lorank.models.base_size import base_parameters
from lorank.models.loading import config_of, load_task_model, without_weights
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import (
    PACKS_ON_CPU,
    check_quantization,
    hold_for_sharding,
    keep_gradients,
    loading_options,
)
from lorank.scoring.weights import weight_of

KINDS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
NEEDS_2_8 = pytest.mark.skipif(
    torch.__version__.startswith("2.7"), reason="FSDP of torch 2.7 gathers weights of one dtype only"
)


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


@NEEDS_2_8
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
def test_4_bit_weights_are_held_as_fp32_where_fsdp_will_shard_them(storage: torch.dtype) -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=True, compute_dtype=torch.float32, quant_type="nf4", quant_storage=storage)
    torch.nn.init.normal_(layer.bias)
    layer.to("cpu")
    inputs = torch.randn(3, 64)
    size, before, weights = base_parameters(layer), layer(inputs), weight_of(layer)
    bits = layer.weight.data.reshape(-1).view(torch.uint8).clone()
    plugin = SimpleNamespace(
        mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    )
    assert not hold_for_sharding(torch.nn.Sequential(layer), plugin)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight.data.reshape(-1).view(torch.uint8), bits)
    assert torch.equal(layer(inputs), before)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(None, torch.bfloat16, torch.bfloat16)
    layer.weight = torch.nn.Parameter(layer.weight.data, requires_grad=False)  # what FSDP leaves of it
    assert torch.equal(weight_of(layer), weights)
    assert base_parameters(layer) == size
    assert torch.equal(layer(inputs), before)


def test_torch_2_7_cannot_shard_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.nn import Linear4bit

    monkeypatch.setattr("lorank.models.quantization.is_torch_version", lambda *_: True)
    with pytest.raises(TrainingError, match=r"needs torch 2.8 or newer, and this is 2\."):
        hold_for_sharding(Linear4bit(64, 32).to("cpu"), SimpleNamespace())


def test_integers_that_fsdp_does_not_shard_are_left_whole_and_said() -> None:
    from bitsandbytes.nn import Linear4bit

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Linear4bit(2, 3, bias=False), torch.nn.Linear(2, 2)).to("cpu")
    model[2].weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    policy = MixedPrecisionPolicy(torch.bfloat16)
    plugin = SimpleNamespace(mixed_precision_policy=policy)
    with pytest.warns(
        LorankWarning, match=r"2 weights of the base are integers or packed \(int8 and uint8\).*every process holds"
    ):
        whole = hold_for_sharding(model, plugin)
    assert [id(parameter) for parameter in whole] == [id(model[1].weight), id(model[2].weight)]
    assert plugin.mixed_precision_policy is policy


@NEEDS_2_8
def test_fsdp_gathers_a_4_bit_base_with_its_bits_or_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    launched("tests.models.quantised_cases", str(tmp_path))
    assert all((tmp_path / f"process {number} is done").is_file() for number in (0, 1))
