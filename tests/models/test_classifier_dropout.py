"""The dropout in front of a classifier's head, by the name that each architecture has for it."""

from pathlib import Path
from typing import Any

import pytest
from peft import TaskType
from torch import nn
from transformers import (
    AlbertConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    MPNetConfig,
    PreTrainedConfig,
)

from lorank.errors import RecipeError
from lorank.models.classifier_dropout import set_classifier_dropout
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained
from lorank.runs.prepare import prepare

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (BertConfig(**SMALL), "classifier_dropout"),
        (DebertaV2Config(**SMALL), "cls_dropout"),
        (AlbertConfig(**SMALL, embedding_size=8), "classifier_dropout_prob"),
        (DistilBertConfig(vocab_size=32, dim=16, n_layers=1, n_heads=2, hidden_dim=16), "seq_classif_dropout"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_each_architecture_has_its_own_field(config: PreTrainedConfig, field: str) -> None:
    before = config.to_dict()
    set_classifier_dropout(config, 0.37, "tiny", trust_remote_code=False)
    after = config.to_dict()
    assert {key for key in after if before.get(key) != after[key]} == {field}
    assert after[field] == 0.37


@pytest.mark.parametrize("config", [MPNetConfig(**SMALL), LlamaConfig(**SMALL)], ids=lambda config: config.model_type)
def test_an_architecture_without_one_is_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(RecipeError, match=rf"tiny \({config.model_type}\) has no dropout of its own.*leave it out"):
        set_classifier_dropout(config, 0.1, "tiny", trust_remote_code=False)


def test_the_loaded_model_has_it_in_front_of_its_head_alone(tiny_folder: Path) -> None:
    base = Pretrained(str(tiny_folder), dropout=0.2, classifier_dropout=0.37)
    model: Any = load_task_model(base, TaskType.SEQ_CLS, ("no", "yes")).model
    assert model.dropout.p == 0.37
    assert {m.p for m in model.bert.modules() if isinstance(m, nn.Dropout)} == {0.2}


def test_it_is_refused_before_weights_are_loaded(tiny_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    MPNetConfig(**SMALL, pad_token_id=0).save_pretrained(tmp_path)  # no weights are there
    with pytest.raises(RecipeError, match=r"model\.classifier_dropout.*has no dropout of its own"):
        prepare(tiny_recipe(model={"name": str(tmp_path), "classifier_dropout": 0.1}), ("lora",))
    data = {"task": "summarization", "train": "a.jsonl", "test": "b.jsonl"}
    with pytest.raises(RecipeError, match=r"classifier_dropout: a model for summarization has no classifier"):
        tiny_recipe(model={"name": str(tmp_path), "classifier_dropout": 0.1}, data=data)
