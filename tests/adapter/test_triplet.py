import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tests.conftest import random_batch, tiny_config, triplet_model
from transformers import BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from lorank import LorankError
from lorank.adapter.triplet import TripletAdapter, TripletLinear, triplet_config


def test_a_fresh_adapter_changes_nothing_and_starts_as_adalora_does() -> None:
    base = BertForSequenceClassification(tiny_config(hidden_size=64, intermediate_size=128)).eval()
    batch = random_batch()
    before = base(**batch).logits
    model = get_peft_model(base, triplet_config(LoraConfig(r=8, target_modules=["query", "dense"])))
    assert torch.equal(model(**batch).logits, before)
    adapter = TripletAdapter.of(model)
    assert all(torch.count_nonzero(values) == 0 for values in adapter.lambdas)
    drawn = torch.cat([factor.detach().flatten() for factor in (*adapter.p, *adapter.q)])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
    assert set(adapter.ranks) == {8}


def test_the_layer_computes_p_lambda_q() -> None:
    model, adapter = triplet_model()
    layer = next(m for m in model.modules() if isinstance(m, TripletLinear))
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
    delta = 2.0 * adapter.p[0] @ torch.diag(adapter.lambdas[0]) @ adapter.q[0]
    expected = layer.base_layer(x) + x @ delta.T
    assert torch.allclose(layer(x), expected, atol=1e-12)
    assert torch.allclose(layer.get_delta_weight("default"), delta, atol=1e-12)


def test_merging_disabling_and_unmerging_work_as_for_any_peft_layer() -> None:
    model, _ = triplet_model()
    batch = random_batch()
    with torch.no_grad():
        adapted = model(**batch).logits
        with model.disable_adapter():
            base = model(**batch).logits
        model.merge_adapter()
        merged = model(**batch).logits
        model.unmerge_adapter()
        assert torch.allclose(merged, adapted, atol=1e-10)
        assert torch.allclose(model(**batch).logits, adapted, atol=1e-10)
        assert not torch.allclose(base, adapted, atol=1e-3)


def test_gpt2_convolutions_are_adapted_too() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, pad_token_id=0, num_labels=2)
    lora = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = get_peft_model(GPT2ForSequenceClassification(config), triplet_config(lora)).double().eval()
    adapter = TripletAdapter.of(model)
    with torch.no_grad():
        for values in adapter.lambdas:
            values.fill_(3.0)
        before = model(**random_batch()).logits
        model.merge_adapter()
        assert torch.allclose(model(**random_batch()).logits, before, atol=1e-10)


def test_a_peft_checkpoint_carries_lambda() -> None:
    model, adapter = triplet_model()
    state = {name: values.clone() for name, values in get_peft_model_state_dict(model).items()}
    assert sum("lora_lambda" in name for name in state) == len(adapter.names)
    other, others = triplet_model()
    with torch.no_grad():
        for values in others.factors("all"):
            values.zero_()
    set_peft_model_state_dict(other, state)
    assert all(torch.equal(a, b) for a, b in zip(adapter.factors("all"), others.factors("all"), strict=True))


def test_only_the_triplets_and_the_head_are_trained() -> None:
    model, adapter = triplet_model()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in adapter.factors("all")} <= trained
    assert all("classifier" in n or "lora_" in n for n, p in model.named_parameters() if p.requires_grad)


def test_bf16_bases_carry_fp32_adapters() -> None:
    base = BertForSequenceClassification(tiny_config()).bfloat16()
    adapter = TripletAdapter.of(get_peft_model(base, triplet_config(LoraConfig(r=2, target_modules=["query"]))))
    assert {factor.dtype for factor in adapter.factors("all")} == {torch.float32}


def test_switched_off_triplets_keep_their_directions() -> None:
    _, adapter = triplet_model()
    p, kept = adapter.p[0].clone(), {name: torch.tensor([True, False, True]) for name in adapter.names}
    adapter.switch_off(kept)
    assert all((values != 0).tolist() == [True, False, True] for values in adapter.lambdas)
    assert torch.equal(adapter.p[0], p)


def test_what_is_not_supported_is_said() -> None:
    base = BertForSequenceClassification(tiny_config())
    with pytest.raises(LorankError, match="no triplet adapter"):
        TripletAdapter.of(base)
    with pytest.raises(LorankError, match="no DoRA"):
        get_peft_model(base, triplet_config(LoraConfig(r=2, target_modules=["query"], use_dora=True)))
