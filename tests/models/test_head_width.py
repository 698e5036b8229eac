"""How many labels a saved head has: read from the head, whatever else was trained whole and however small it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    XLNetConfig,
    XLNetModel,
    set_seed,
)

from lorank.errors import AdapterError
from lorank.models.adapted_model import head_width, load_adapted
from lorank.models.head_width import labels_by_shape

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BASES: dict[str, Any] = {
    "bert": lambda: BertModel(BertConfig(vocab_size=32, **SIZES)),
    "roberta, two layers in the head": lambda: RobertaModel(RobertaConfig(vocab_size=32, **SIZES)),
    "xlnet, a summary before the head": lambda: XLNetModel(
        XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=24)
    ),
    "llama, a head without bias": lambda: LlamaModel(LlamaConfig(vocab_size=32, pad_token_id=0, **SIZES)),
}
CASES = [
    ("bert", 1, ["classifier"]),
    ("bert", 3, ["classifier"]),
    ("bert", 40, ["classifier", "pooler", "LayerNorm"]),
    ("bert", 40, ["classifier", "word_embeddings"]),
    ("roberta, two layers in the head", 77, ["classifier"]),
    ("roberta, two layers in the head", 1, ["classifier"]),
    ("xlnet, a summary before the head", 30, ["sequence_summary", "logits_proj"]),
    ("llama, a head without bias", 20, ["score", "norm"]),
]


@pytest.mark.parametrize(("name", "labels", "whole"), CASES)
def test_an_adapter_is_loaded_with_as_many_labels_as_it_was_trained_for(
    name: str, labels: int, whole: list[str], tmp_path: Path
) -> None:
    set_seed(0)
    BASES[name]().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=labels)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=whole)
    ).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    assert head_width(tmp_path / "adapter") == labels
    loaded = load_adapted(tmp_path / "adapter").eval()
    ids = torch.arange(3, 9)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.config.num_labels == labels


def test_without_a_saved_head_there_is_no_width(tmp_path: Path) -> None:
    BASES["bert"]().save_pretrained(tmp_path / "base")
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["query"])).save_pretrained(str(tmp_path / "adapter"))
    assert head_width(tmp_path / "adapter") is None


class _Heads(torch.nn.Module):
    """Two heads, one of them with one row more than labels, as detectors have it for "nothing"."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.classifier, self.boxes = torch.nn.Linear(4, labels), torch.nn.Linear(4, labels + 1)


def test_every_head_counts_by_its_own_rule_and_all_have_to_agree() -> None:
    assert labels_by_shape({"classifier.weight": (5, 4), "boxes.weight": (6, 4), "boxes.bias": (6,)}, _Heads) == 5
    assert labels_by_shape({"boxes.weight": (6, 4)}, _Heads) == 5
    assert labels_by_shape({"other.weight": (2, 4)}, _Heads) is None
    with pytest.raises(AdapterError, match=r"'classifier.weight' for 5, 'boxes.weight' for 6; .* one training"):
        labels_by_shape({"classifier.weight": (5, 4), "boxes.weight": (7, 4)}, _Heads)
