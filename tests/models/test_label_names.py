"""Names of labels stand beside an adapter, for merging."""

import json
from pathlib import Path

import pytest
from tests.conftest import tiny_config
from transformers import BertForSequenceClassification

from lorank.errors import AdapterError
from lorank.models.label_names import label_names_of, read_label_names, write_label_names


def test_names_come_back_in_the_order_of_the_head(tmp_path: Path) -> None:
    names = ("10", "9", "gut", "schlecht: 😀")
    write_label_names(tmp_path, names)
    assert read_label_names(tmp_path) == names
    assert json.loads((tmp_path / "label_names.json").read_text(encoding="utf-8")) == list(names)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "null", '["a", "a"]'])
def test_what_is_no_list_of_names_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "label_names.json").write_text(content)
    with pytest.raises(AdapterError, match=r"label_names\.json.*put it right or take it away"):
        read_label_names(tmp_path)
    assert read_label_names(tmp_path / "nowhere") == ()


def test_a_models_own_names_are_no_names(tmp_path: Path) -> None:
    named = tiny_config(num_labels=2, id2label={0: "no", 1: "yes"}, problem_type="single_label_classification")
    unnamed = tiny_config(num_labels=2, problem_type="single_label_classification")
    assert label_names_of(BertForSequenceClassification(named)) == ("no", "yes")
    assert label_names_of(BertForSequenceClassification(unnamed)) == ()
    assert label_names_of(BertForSequenceClassification(tiny_config(num_labels=1, problem_type="regression"))) == ()
    write_label_names(tmp_path, ())
    assert not (tmp_path / "label_names.json").exists()
