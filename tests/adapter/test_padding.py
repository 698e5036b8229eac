"""Padded adapters are for serving; lorank does not train them."""

from pathlib import Path

import pytest
from peft import PeftModel
from tests.conftest import tiny_config, tiny_trainer
from transformers import BertForSequenceClassification, set_seed

from lorank import RankAllocation
from lorank.errors import AdapterError
from lorank.serving.export import export


def test_training_a_padded_export_is_refused_with_the_reason(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "first", r=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    base.save_pretrained(tmp_path / "base")
    export(tmp_path / "trained", tmp_path / "padded", base=str(tmp_path / "base"))
    export(tmp_path / "padded", tmp_path / "compact", "peft", base=str(tmp_path / "base"))

    def again(folder: str) -> None:
        fresh = BertForSequenceClassification.from_pretrained(tmp_path / "base")
        model = PeftModel.from_pretrained(fresh, str(tmp_path / folder), is_trainable=True)
        allocation = RankAllocation(method="adalora", budget="r=1")
        tiny_trainer(tmp_path / f"{folder}-out", allocation, model=model).train()

    with pytest.raises(AdapterError, match=r"are padding: .* no gradient .* lorank export ADAPTER OUT --for peft"):
        again("padded")
    again("compact")
