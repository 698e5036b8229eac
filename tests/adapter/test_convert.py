import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.conftest import random_batch, tiny_config
from torch import nn
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, set_seed

from lorank.adapter.convert import adapted_layers, fold_to_lora, to_triplets, trained_adapter
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter, TripletLinear
from lorank.errors import AdapterError, LorankWarning


def plain(trained: bool = False, **options: Any) -> tuple[nn.Module, PeftModel]:
    """A base model, and a copy of it with a LoRA adapter."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    usual = {
        "target_modules": ["query", "value", "intermediate.dense"],
        "r": 4,
        "lora_alpha": 8,
        "task_type": TaskType.SEQ_CLS,
    }
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{**usual, **options})).eval()
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    return base, model


def test_a_fresh_adapter_becomes_fresh_triplets() -> None:
    base, model = plain()
    adapter = to_triplets(model, trained_adapter(model))
    assert set(adapter.ranks) == {4}
    assert all(p.requires_grad for p in adapter.factors("all"))
    drawn = torch.cat([factor.detach().flatten() for factor in (*adapter.p, *adapter.q)])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model(**random_batch()).logits, base(**random_batch()).logits)


def test_lambda_can_start_elsewhere() -> None:
    _, model = plain()
    adapter = to_triplets(model, "default", initial_lambda=0.1)
    assert all(torch.equal(values, torch.full_like(values, 0.1)) for values in adapter.lambdas)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 1}}]
)
def test_a_trained_adapter_keeps_its_function_there_and_back(options: dict[str, Any], tmp_path: Path) -> None:
    base, model = plain(trained=True, **options)
    batch = random_batch()
    before = model(**batch).logits
    adapter = to_triplets(model, "default")
    for p, q, values in zip(adapter.p, adapter.q, adapter.lambdas, strict=True):
        eye = torch.eye(len(values))
        assert torch.allclose(p.T @ p, eye, atol=1e-5)
        assert torch.allclose(q @ q.T, eye, atol=1e-5)
        assert (values.diff() <= 1e-6).all()
    assert torch.allclose(model(**batch).logits, before, atol=1e-5)
    fold_to_lora(model, adapter, scale=2.0)
    folded = model(**batch).logits
    assert torch.allclose(folded, before, atol=1e-5)
    assert not any(isinstance(module, TripletLinear) for module in model.modules())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(loaded(**batch).logits, folded, atol=1e-6)


def cut_model() -> tuple[nn.Module, PeftModel, TripletAdapter]:
    """Triplets of random values, cut to ranks 0 to 3."""
    base, model = plain()
    adapter = to_triplets(model, "default")
    with torch.no_grad():
        for factor in adapter.factors("all"):
            factor.normal_()
    shrink(adapter, {name: torch.arange(number % 4) for number, name in enumerate(adapter.names)})
    return base, model, adapter


def test_folding_is_exact_and_compact(tmp_path: Path) -> None:
    base, model, adapter = cut_model()
    batch, ranks = random_batch(), dict(zip(adapter.names, adapter.ranks, strict=True))
    before = model(**batch).logits
    fold_to_lora(model, adapter, scale=2.0)
    assert torch.allclose(model(**batch).logits, before, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(loaded(**batch).logits, before, rtol=1e-5, atol=1e-6)
    found = {n: m.r["default"] for n, m in loaded.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    assert found == {name: rank for name, rank in ranks.items() if rank}
    assert 0 in ranks.values()


def test_an_adapter_beside_it_stays_as_it_is() -> None:
    _, model = plain(trained=True, task_type=None)
    model.add_adapter("frozen", LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "frozen"])
    model.set_requires_grad("frozen", False)
    batch = random_batch()
    before = model(**batch).logits
    adapter = to_triplets(model, trained_adapter(model))
    assert adapter.adapter_name == "default"
    assert torch.allclose(model(**batch).logits, before, atol=1e-5)
    shrink(adapter, {name: torch.arange(0 if "query" in name else 4) for name in adapter.names})
    cut = model(**batch).logits
    fold_to_lora(model, adapter, scale=2.0)
    assert torch.allclose(model(**batch).logits, cut, atol=1e-5)
    assert model.active_adapters == ["default", "frozen"]
    query = model.get_base_model().bert.encoder.layer[0].attention.self.query
    assert set(query.lora_A) == {"frozen"}


def test_names_that_contain_one_another_are_told_apart() -> None:
    """PEFT's allocator looks for the adapter's name as a part of the parameter's."""
    _, model = plain()
    model.add_adapter("default_2", LoraConfig(r=3, target_modules=["query"]))
    model.set_adapter("default_2")
    assert trained_adapter(model) == "default_2"
    adapter = to_triplets(model, "default_2")
    assert set(adapter.ranks) == {3}
    assert all("default" not in layer.lora_lambda for layer in adapter.layers)


def test_gpt2_with_tied_embeddings_is_folded_too(tmp_path: Path) -> None:
    set_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, tie_word_embeddings=True)).eval()
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)
    model = get_peft_model(copy.deepcopy(base), config).eval()
    adapter = to_triplets(model, "default", initial_lambda=3.0)
    batch = {"input_ids": torch.arange(12).reshape(2, 6)}
    before = model(**batch).logits
    assert not torch.allclose(before, base(**batch).logits, atol=1e-4)
    fold_to_lora(model, adapter, scale=4.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.allclose(loaded(**batch).logits, before, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["query", "word_embeddings"]}, "linear layers only"),
        ({"init_lora_weights": "orthogonal", "trained": False}, None),
    ],
)
def test_what_has_no_triplet_form_is_refused(options: dict[str, Any], said: str | None) -> None:
    trained = options.pop("trained", False)
    _, model = plain(trained, **options)
    if said is None:  # an orthogonal start has B other than 0, and is kept as a function
        before = model(**random_batch()).logits
        to_triplets(model, "default")
        assert torch.allclose(model(**random_batch()).logits, before, atol=1e-4)
        return
    with pytest.raises(AdapterError, match=said):
        to_triplets(model, "default")


@pytest.mark.parametrize("trained", [False, True])
def test_a_rank_above_the_smaller_side_is_lowered_to_it(trained: bool) -> None:
    _, model = plain(trained, r=20)  # of 16 dimensions at least in every layer
    scale = {layer.scaling["default"] for layer in adapted_layers(model, "default").values()}
    before = model(**random_batch()).logits
    with pytest.warns(LorankWarning, match=r"'bert\.encoder\.layer\.0\..*20 to 16"):
        adapter = to_triplets(model, "default")
    assert set(adapter.ranks) == {16}
    assert torch.allclose(model(**random_batch()).logits, before, atol=1e-4)
    fold_to_lora(model, adapter, scale=scale.pop())
    assert torch.allclose(model(**random_batch()).logits, before, atol=1e-4)


def test_starts_that_change_the_base_weights_are_refused() -> None:
    """The base was changed by the first r singular directions; after a cut PEFT would change it by fewer when it loads."""
    for start in ("pissa", "olora"):
        _, model = plain(init_lora_weights=start)
        with pytest.raises(AdapterError, match="changes the base weights"):
            to_triplets(model, "default")


def test_an_adapter_on_embeddings_alone_is_refused() -> None:
    _, model = plain(target_modules=["word_embeddings"])
    with pytest.raises(AdapterError, match="linear layers only"):
        to_triplets(model, trained_adapter(model))


def test_a_start_that_would_be_lost_is_refused() -> None:
    _, model = plain()
    model.peft_config["default"].init_lora_weights = "eva"
    with pytest.raises(AdapterError, match="eva"):
        to_triplets(model, "default")


def test_which_adapter_trains_must_be_clear() -> None:
    base, model = plain()
    with pytest.raises(AdapterError, match="no adapters"):
        trained_adapter(base)
    model.set_requires_grad("default", False)
    with pytest.raises(AdapterError, match="no LoRA that trains"):
        trained_adapter(model)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query"]))
    model.set_requires_grad(["default", "second"], True)
    with pytest.raises(AdapterError, match=r"2 LoRA adapters that train \(default, second\)"):
        trained_adapter(model)
    other = get_peft_model(base, AdaLoraConfig(target_modules=["query"], total_step=10, tinit=1, tfinal=1))
    with pytest.raises(AdapterError, match="plain LoraConfig"):
        trained_adapter(other)


def test_every_rank_zero_is_no_adapter() -> None:
    _, model = plain()
    adapter = to_triplets(model, "default")
    shrink(adapter, {name: torch.arange(0) for name in adapter.names})
    with pytest.raises(AdapterError, match="every rank is 0"):
        fold_to_lora(model, adapter, 2.0)
