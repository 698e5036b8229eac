"""Dropout in front of the head of a classifier: each architecture has a config field of its own for it, or none."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from lorank.errors import RecipeError

# As architectures of transformers name it: BERT, RoBERTa and BART; ALBERT; DeBERTa; DistilBERT; XLNet and XLM.
_FIELDS = (
    *("classifier_dropout", "classifier_dropout_prob", "cls_dropout", "seq_classif_dropout"),
    *("summary_last_dropout", "summary_first_dropout"),
)


def set_classifier_dropout(config: PreTrainedConfig, share: float, name: str, *, trust_remote_code: bool) -> None:
    """Set the fields of a config that decide the dropout in front of its classifier's head.

    Which fields these are is found out by building the classifier without weights: a config takes any field, also one that the
    model's code does not read.

    Args:
        config: changed in place.
        share: of the activations that are dropped.
        name: of the model, for the message.
        trust_remote_code: as for the model.

    Raises:
        RecipeError: the architecture has no such field.

    """
    trial, marks = copy.deepcopy(config), {field: 0.0123 + 0.0001 * number for number, field in enumerate(_FIELDS)}
    for field, mark in marks.items():
        setattr(trial, field, mark)
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(trial, trust_remote_code=trust_remote_code)
    inside = f"{model.base_model_prefix}."
    found = {m.p for at, m in model.named_modules() if isinstance(m, nn.Dropout) and not at.startswith(inside)}
    fields = [field for field, mark in marks.items() if mark in found]
    if not fields:
        raise RecipeError(
            f"model.classifier_dropout: the classifier of {name} ({config.model_type}) has no dropout of its own in its config "
            f"(looked for {', '.join(_FIELDS)}); leave it out, or set model.dropout, which is for the whole model"
        )
    for field in fields:
        setattr(config, field, share)
