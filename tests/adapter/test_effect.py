"""An adapter that does nothing is known, whatever its kind of layer."""

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tests.conftest import tiny_config
from transformers import BertForSequenceClassification

from lorank.adapter.effect import has_no_effect, warn_without_effect
from lorank.errors import LorankWarning


def adapted(*targets: str) -> torch.nn.Module:
    base = BertForSequenceClassification(tiny_config(num_labels=2))
    return get_peft_model(base, LoraConfig(r=2, target_modules=list(targets), task_type=TaskType.SEQ_CLS))


@pytest.mark.parametrize("targets", [("query", "value"), ("word_embeddings",)])
@pytest.mark.parametrize(("value", "nothing"), [(0.0, True), (1e-35, True), (1e-20, False), (float("nan"), False)])
def test_a_product_below_1e_30_in_every_module_does_nothing(
    targets: tuple[str, ...], value: float, nothing: bool
) -> None:
    model = adapted(*targets)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # one module is enough to do something
                first = "layer.0.attention.self.query" in name or "word_embeddings" in name
                parameter.fill_(value if "_B" in name and first else 0.0 if "_B" in name else 1.0)
    assert has_no_effect(model) is nothing


def test_it_is_said_and_a_model_without_adapter_is_not_asked(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(LorankWarning, match="runs/mine: lora_B is below 1e-30 everywhere"):
        warn_without_effect(adapted("query"), "runs/mine")
    assert not has_no_effect(BertForSequenceClassification(tiny_config()))
