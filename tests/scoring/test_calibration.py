"""The pass over calibration batches on transformers models: split, padding, labels, what goes wrong, and what is left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tests.conftest import random_batch
from tests.scoring.calibration_cases import MODELS, QUANTITIES, batches_of, collate, example, make
from tests.scoring.curvature.networks import Stack, summed
from torch.nn.functional import pad
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    set_seed,
)

from lorank.errors import ScoresError
from lorank.models.base_size import base_parameters
from lorank.scoring.batches import count_targets, summed_loss
from lorank.scoring.calibration import CalibrationSums, Quantity, calibrate
from lorank.scoring.one_shot import resampling
from lorank.scoring.weights import weight_of
from lorank.targets import find_targets


def means(sums: CalibrationSums) -> dict[str, torch.Tensor]:
    """What scores are made of: means over the resamples of the folds."""
    weights, _ = resampling(sums.targets, 0)
    kinds = {"columns": sums.columns, "outputs": sums.outputs, "tokens": sums.tokens}
    return {f"{kind} {name}": weights @ v.double() for kind, values in kinds.items() for name, v in values.items()}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("kind", MODELS)
def test_one_batch_of_64_equals_four_of_16_and_ragged_ones(kind: str, quantity: Quantity) -> None:
    model = make(kind)
    targets = find_targets(model)
    whole, quarters, ragged = (calibrate(model, targets, batches_of(kind, 64, size), quantity) for size in (64, 16, 23))
    torch.testing.assert_close(means(quarters), means(whole), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(means(ragged), means(whole), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(quarters.targets, whole.targets)


def test_every_query_key_value_and_cross_attention_layer_is_seen_with_its_own_tokens() -> None:
    model, batches = make("encoder-decoder"), batches_of("encoder-decoder", 6, 3)
    sums = calibrate(model, find_targets(model), batches, "gram")
    encoder_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    decoder_tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    counted = {name: int(tokens.sum()) for name, tokens in sums.tokens.items()}
    for name, tokens in counted.items():
        crossing = "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
        assert tokens == (encoder_tokens if ".encoder." in name or crossing else decoder_tokens), name


def test_equal_lengths_of_encoder_and_decoder_are_told_apart() -> None:
    model = make("encoder-decoder")
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 10, 11]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids != 1).long(),
        "labels": torch.tensor([[5, -100, -100, -100], [7, 8, 9, 1]]),
    }
    sums = calibrate(model, find_targets(model), [batch], "gram")
    assert int(sums.tokens["model.encoder.layers.0.fc1"].sum()) == 7
    assert int(sums.tokens["model.decoder.layers.0.fc1"].sum()) == 5
    assert int(sums.tokens["model.decoder.layers.0.encoder_attn.k_proj"].sum()) == 7


def test_padding_to_every_position_that_there_is_leaves_room_to_tell_them_apart() -> None:
    model = make("encoder-decoder")  # 32 positions
    short = batches_of("encoder-decoder", 4, 4)[0]
    fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
    full = {key: pad(value, (0, 32 - value.shape[1]), value=fill[key]) for key, value in short.items()}
    for quantity in ("gram", "kfac"):
        one, two = (calibrate(model, find_targets(model), [batch], quantity) for batch in (short, full))
        torch.testing.assert_close(means(two), means(one))


def test_masked_labels_are_not_targets_and_a_causal_model_does_not_predict_the_first_token() -> None:
    model, batches = make("decoder"), batches_of("decoder", 6, 3)
    batches[0]["labels"][0] = -100
    sums = calibrate(model, find_targets(model), batches, "fisher")
    assert int(sums.targets.sum()) == sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    without = calibrate(model, find_targets(model), [{k: v[1:] for k, v in batches[0].items()}, batches[1]], "fisher")
    name = "model.layers.1.mlp.up_proj"
    torch.testing.assert_close(sums.columns[name].sum(0), without.columns[name].sum(0))


@pytest.mark.parametrize("quantity", ["fisher", "gradient"])
def test_a_layer_that_runs_several_times_has_one_gradient(quantity: Quantity) -> None:
    sizes = {
        "hidden_size": 8,
        "embedding_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    set_seed(0)
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=32, initializer_range=0.3, **sizes)).double().eval()
    batch = random_batch(size=3)
    sums = calibrate(model, find_targets(model), [batch], quantity)
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn"
    weight = model.get_submodule(layer).weight
    expected = torch.zeros(weight.shape[1], dtype=torch.float64)
    for one in range(3):
        (gradient,) = torch.autograd.grad(model(**{k: v[one : one + 1] for k, v in batch.items()}).loss, [weight])
        expected += (gradient.square() if quantity == "fisher" else (weight.detach() * gradient).abs()).sum(0)
    torch.testing.assert_close(sums.columns[layer].sum(0), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("quantity", ["fisher", "kfac", "gradient", "hutchinson"])
def test_gradient_checkpointing_changes_nothing(quantity: Quantity, reentrant: bool) -> None:
    model, batches = make("decoder"), batches_of("decoder", 6, 3)
    plain = calibrate(model, find_targets(model), batches, quantity)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(
        means(calibrate(model, find_targets(model), batches, quantity)), means(plain), rtol=1e-7, atol=1e-10
    )


def test_checkpointed_layers_keep_no_inputs() -> None:
    model, batch = make("decoder"), collate("decoder", [example("decoder", k) for k in range(8)])

    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        from lorank.scoring import calibration

        one_batch = calibration._Summing.one_batch

        def watched(self: Any, *arguments: Any) -> None:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                one_batch(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration._Summing, "one_batch", watched)
            calibrate(model, find_targets(model), [batch], "fisher")
        return sum(kept.values())

    whole = kept_bytes()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert kept_bytes() < 0.8 * whole


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_model_is_left_as_it_was(quantity: Quantity) -> None:
    model = make("decoder").train()
    model.get_submodule("model.layers.0").requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    calibrate(model, find_targets(model), batches_of("decoder", 4, 2), quantity)
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert model.config.use_cache
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("quantity", ["fisher", "kfac", "gradient", "hutchinson"])
def test_no_gradient_of_a_weight_is_kept_and_state_is_as_wide_as_the_inputs(quantity: Quantity) -> None:
    model = make("encoder")
    sums = calibrate(model, find_targets(model), batches_of("encoder", 8, 4), quantity, folds=4)
    for target in find_targets(model):
        held = sums.columns[target.name].numel() + sums.outputs.get(target.name, torch.zeros(0)).numel()
        assert held <= 4 * (target.d_in + 1)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_summed_in_fp32_and_is_near(quantity: Quantity, dtype: torch.dtype) -> None:
    model, batches = make("encoder"), batches_of("encoder", 16, 8)
    exact = calibrate(model, find_targets(model), batches, quantity)
    if quantity == "hutchinson" and dtype == torch.bfloat16:
        with pytest.raises(ScoresError, match="works in bfloat16, in which second derivatives are noise"):
            calibrate(model.to(dtype), find_targets(model), batches, quantity)
        return
    rough = calibrate(model.to(dtype), find_targets(model), batches, quantity)
    assert all(value.dtype == torch.float32 for value in rough.columns.values())
    name = "bert.encoder.layer.0.output.dense"
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(
        rough.columns[name].double().sum(), exact.columns[name].sum(), rtol=tolerance, atol=tolerance * 1e-2
    )


def test_layers_that_share_an_input_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorank.scoring import calibration

    calls = []
    plain = calibration.input_energy
    monkeypatch.setattr(calibration, "input_energy", lambda x, mask: (calls.append(x.shape), plain(x, mask))[1])
    model = make("decoder")
    calibrate(model, find_targets(model), batches_of("decoder", 2, 2), "gram")
    assert len(calls) == 2 * 4  # q, k, v; o; gate, up; down: four inputs in each of two blocks, seven layers


def in_4_bits(folder: Path) -> tuple[Any, Any]:
    """A tiny model packed in 4 bits, and one with the weights that this stands for."""
    pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    plain.save_pretrained(folder)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    packed = LlamaForCausalLM.from_pretrained(folder, quantization_config=four, device_map="cpu")
    with torch.no_grad():
        for target in find_targets(plain):
            assert type(packed.get_submodule(target.name)).__name__ == "Linear4bit"
            plain.get_submodule(target.name).weight.copy_(weight_of(packed.get_submodule(target.name)))
    return packed, plain


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_4_bit_base_scores_as_the_weights_that_it_stands_for(quantity: Quantity, tmp_path: Path) -> None:
    packed, plain = in_4_bits(tmp_path)
    assert base_parameters(packed) == base_parameters(plain)
    # As on a processor with AVX512-BF16, where bitsandbytes would multiply in bf16.
    layers = [packed.get_submodule(target.name) for target in find_targets(plain)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    before = [layer.weight.clone() for layer in layers]
    sums = [calibrate(model, find_targets(model), batches_of("decoder", 6, 3), quantity) for model in (packed, plain)]
    torch.testing.assert_close(*map(means, sums), rtol=1e-4, atol=1e-9)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    assert all(layer.support_avx512bf16_for_cpu for layer in layers)


def test_4_bit_weights_that_are_packed_for_inference_are_not_taken_for_numbers(tmp_path: Path) -> None:
    packed, _ = in_4_bits(tmp_path)
    layer = packed.get_submodule(find_targets(packed)[-1].name)
    layer.weight.quant_state.packing_format_for_cpu = True
    for look in (
        lambda: calibrate(packed, find_targets(packed), batches_of("decoder", 2, 2), "fisher"),
        lambda: weight_of(layer),
    ):
        with pytest.raises(ScoresError, match="packed the 4-bit weights for inference on this processor"):
            look()


def test_weights_in_8_bits_are_read_as_the_numbers_that_they_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="install bitsandbytes to test quantised bases")
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    plain.save_pretrained(tmp_path)
    eight = BitsAndBytesConfig(load_in_8bit=True)
    packed = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=eight, device_map="cpu")
    for target in find_targets(plain):
        weight = plain.get_submodule(target.name).weight.detach()
        torch.testing.assert_close(weight_of(packed.get_submodule(target.name)).float(), weight, atol=1e-3, rtol=0)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(
        packed(ids).logits, plain(ids).logits, atol=0.05, rtol=0
    )  # reading them left them as they were
    layer = packed.get_submodule(find_targets(plain)[0].name)
    layer.weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ScoresError, match=r"holds its weights as torch\.int8, which cannot be read"):
        weight_of(layer)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_weights_that_lie_elsewhere_are_fetched_by_accelerate(quantity: Quantity) -> None:
    model, batches = make("decoder"), batches_of("decoder", 6, 3)
    plain = calibrate(model, find_targets(model), batches, quantity)
    cpu_offload(model, torch.device("cpu"))
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    if quantity == "gradient":  # looks at the weights themselves
        with pytest.raises(ScoresError, match=r"weights elsewhere \(offloaded\)"):
            calibrate(model, find_targets(model), batches, quantity)
    else:
        torch.testing.assert_close(means(calibrate(model, find_targets(model), batches, quantity)), means(plain))


@pytest.mark.parametrize("quantity", ["gram", "fisher", "kfac", "gradient"])
def test_autocast_rounds_the_model_and_not_the_sums(quantity: Quantity) -> None:
    # Columns far below what bf16 keeps beside a large one, and squares beyond what fp16 holds.
    model = Stack(4, 3).float()
    x = torch.tensor([[[300.0, 1.0, 1e-3, 1.0]] * 40], dtype=torch.float32)
    batch = {"x": x, "labels": torch.zeros(1, 40, 3)}

    def loss(model: Any, batch: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            outputs = model(batch["x"])
        return outputs.square().sum(), torch.ones(1)

    def forward(**batch: torch.Tensor) -> torch.Tensor:
        return Stack.forward(model, batch["x"])

    model.forward = forward if quantity == "gram" else model.forward  # type: ignore[method-assign]
    own: Any = {} if quantity == "gram" else {"loss": loss}  # gram alone runs the model in half precision
    plain = calibrate(model, model.targets(), [batch], quantity, **own)
    with torch.autocast("cpu", torch.float16):
        cast = calibrate(model, model.targets(), [batch], quantity, **own)
    torch.testing.assert_close(cast.columns, plain.columns, rtol=1e-5, atol=0)
    torch.testing.assert_close(cast.outputs, plain.outputs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("quantity", ["gram", "fisher", "kfac"])
def test_a_checkpointed_layer_drops_nothing_by_itself(quantity: Quantity) -> None:
    ends = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1}
    set_seed(0)
    model = MarianMTModel(
        MarianConfig(vocab_size=32, d_model=16, dropout=0.4, activation_dropout=0.4, init_std=0.3, **ends, **heads)
    )
    batches = batches_of("encoder-decoder", 4, 2)
    plain = calibrate(model.eval(), find_targets(model), batches, quantity)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(means(calibrate(model, find_targets(model), batches, quantity)), means(plain))
    assert model.model.encoder.layers[0].dropout == 0.4


@pytest.mark.parametrize("quantity", ["fisher", "kfac", "gradient", "hutchinson"])
def test_outputs_that_a_model_changes_in_place(quantity: Quantity) -> None:
    model, changed = Stack(4, 6, 3, how="classes"), Stack(4, 6, 3, how="classes")
    batch = {"x": torch.randn(5, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0, 1])}

    def in_place(x: torch.Tensor) -> torch.Tensor:
        return changed.layers[1](changed.layers[0](x).tanh_())

    changed.forward = in_place  # type: ignore[method-assign,assignment]
    one, other = (calibrate(m, m.targets(), [batch], quantity, loss=summed) for m in (model, changed))
    torch.testing.assert_close(one.columns, other.columns)


def test_encoder_decoders_without_masks_are_all_real_tokens() -> None:
    model = make("encoder-decoder")
    batch = {"input_ids": torch.randint(5, 31, (4, 7)), "labels": torch.randint(5, 31, (4, 5))}
    sums = calibrate(model, find_targets(model), [batch], "gram")
    assert int(sums.tokens["model.encoder.layers.0.fc1"].sum()) == 28
    assert int(sums.tokens["model.decoder.layers.0.fc1"].sum()) == 20


def test_padded_decoder_inputs_without_labels() -> None:
    model = make("encoder-decoder")
    ids = torch.tensor([[2, 6, 7, 1], [1, 9, 10, 11]])  # the second starts with the padding token, as Marian does
    batch = {"input_ids": torch.randint(5, 31, (2, 6)), "decoder_input_ids": ids}
    sums = calibrate(model, find_targets(model), [batch], "gram")
    assert int(sums.tokens["model.decoder.layers.0.fc1"].sum()) == 7


def test_models_whose_labels_are_not_shifted() -> None:
    from transformers import BartForCausalLM

    config = BartConfig(vocab_size=32, d_model=16, decoder_layers=1, decoder_ffn_dim=24, decoder_attention_heads=2)
    model = BartForCausalLM(config)
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    assert count_targets(model, labels).tolist() == [2, 1]
    assert count_targets(make("decoder"), labels).tolist() == [1, 0]
    total, counts = summed_loss(model.eval(), {"input_ids": labels.clamp_min(0), "labels": labels})
    logits = model(labels.clamp_min(0)).logits
    torch.testing.assert_close(
        total, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    )
    assert int(counts.sum()) == 3


def test_a_generator_of_batches_is_walked_once() -> None:
    model = make("encoder")

    def once() -> Iterator[dict[str, torch.Tensor]]:
        yield from batches_of("encoder", 6, 2)

    assert calibrate(model, find_targets(model), once(), "kfac").batches == 3
