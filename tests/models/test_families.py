"""Which class stands for a config where no task is given."""

from typing import Any

import pytest
from transformers import BartConfig, BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, T5Config, WhisperConfig

from lorank.models.families import trained_families


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BertConfig(), "BertForSequenceClassification"),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForSequenceClassification"),
        (LlamaConfig(), "LlamaForCausalLM"),
        (LlamaConfig(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        (GPT2Config(), "GPT2LMHeadModel"),
        (T5Config(), "T5ForConditionalGeneration"),
        (BartConfig(), "BartForConditionalGeneration"),
        (WhisperConfig(), "WhisperForConditionalGeneration"),
    ],
)
def test_the_class_that_is_trained(config: PreTrainedConfig, name: str) -> None:
    family: Any = next(one for one in trained_families(config) if type(config) in one._model_mapping)
    assert family._model_mapping[type(config)].__name__ == name
