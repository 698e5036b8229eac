"""A classifier that predicts a single class is named."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import TaskType

from lorank.errors import LorankWarning
from lorank.models.loading import load_task_model, load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.tasks.collapse import warn_of_one_class
from lorank.tasks.data import load_task_data
from lorank.tasks.evaluation import evaluate
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.section import DataSection


def classes(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("predicted", "labels", "warned"),
    [
        ((0, 200), (100, 100), True),
        ((2, 198), (100, 100), True),  # 99 %
        ((3, 197), (100, 100), False),
        ((0, 200), (10, 190), True),
        ((0, 200), (9, 191), False),  # of so few others it may know none
        ((0, 0, 200), (50, 75, 75), True),
        ((0, 49), (25, 24), False),  # too few examples to say
        ((0, 200), (0, 200), False),
    ],
)
def test_one_class_for_labels_of_several(predicted: tuple[int, ...], labels: tuple[int, ...], warned: bool) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_one_class(classes(*predicted), classes(*labels), ("no", "yes", "maybe"))
    assert bool(said) is warned


def test_the_evaluation_says_it_with_the_class_and_the_way_out(tiny_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        lines = [f"the day was cold\t{'yes' if k % 4 else 'no'}" for k in range(60)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    section = DataSection(**{part: str(tmp_path / f"{part}.tsv") for part in ("train", "test")}, max_length=8)
    data, base = load_task_data(section), Pretrained(str(tiny_folder))
    model: Any = load_task_model(base, TaskType.SEQ_CLS, data.label_names).model
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[data.label_names.index("yes")] = 1.0
    settings = EvaluationSettings(section, TaskType.SEQ_CLS, ("accuracy",))
    wanted = "the model predicts one class: 'yes' for 100.0% of 60 examples, and 75.0% of their labels are.*lower the"
    with pytest.warns(LorankWarning, match=wanted):
        metrics, _ = evaluate(model, data, load_tokenizer(base), settings, tmp_path / "work")
    assert metrics == {"accuracy": 0.75}
