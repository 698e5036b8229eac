"""Where in a model the adapters are."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import random_batch, tiny_config
from torch import nn
from transformers import BertForSequenceClassification, BertModel

from lorank.adapter.adapted_part import adapted_part, own_config
from lorank.adapter.convert import adapted_layers, fold_to_lora, to_triplets, trained_adapter
from lorank.errors import AdapterError

LORA = {"r": 3, "target_modules": ["query", "dense"]}


def bert() -> BertModel:
    return BertModel(tiny_config(initializer_range=0.3))


def test_a_peft_model_or_what_add_adapter_was_called_on_anywhere_inside() -> None:
    wrapped = get_peft_model(bert(), LoraConfig(**LORA))
    assert adapted_part(wrapped) is wrapped
    assert adapted_part(nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": wrapped}))) is wrapped
    native = bert()
    native.add_adapter(LoraConfig(**LORA))
    assert adapted_part(native) is native
    assert adapted_part(nn.ModuleList([native, bert()])) is native


def test_none_and_several_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"BertModel has no adapters.*get_peft_model\("):
        adapted_part(bert())
    towers = nn.ModuleList([get_peft_model(bert(), LoraConfig(**LORA)) for _ in range(2)])
    with pytest.raises(AdapterError, match=r"adapters on 2 models inside of it \(BertModel, BertModel\)"):
        adapted_part(towers)


def test_an_adapter_of_add_adapter_keeps_its_function_there_and_back() -> None:
    model = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    model.add_adapter(LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    batch = random_batch()
    with torch.no_grad():
        before = model(**batch).logits
        names = set(adapted_layers(model, trained_adapter(model)))
        adapter = to_triplets(model, "default")
        assert set(adapter.names) == names
        assert torch.allclose(model(**batch).logits, before, atol=1e-5)
        fold_to_lora(model, adapter, scale=2.0)
        assert torch.allclose(model(**batch).logits, before, atol=1e-5)
    assert model.peft_config["default"].target_modules == names


def test_a_config_that_two_adapters_share_is_copied() -> None:
    """What TRL does with a trained adapter and its reference."""
    model = get_peft_model(bert(), LoraConfig(**LORA))
    alone = own_config(model, "default")
    assert alone is model.peft_config["default"]
    model.add_adapter("ref", alone)
    mine = own_config(model, "default")
    assert mine is model.peft_config["default"]
    assert mine is not model.peft_config["ref"]
    assert mine.to_dict() == model.peft_config["ref"].to_dict()
