"""Metrics and loss of a model on the test part."""

from pathlib import Path
from typing import Any

import pytest
from peft import TaskType

from lorank.errors import LorankWarning
from lorank.models.loading import load_task_model, load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.tasks.data import load_task_data
from lorank.tasks.evaluation import evaluate
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.section import DataSection


def write(folder: Path, labels: list[str]) -> DataSection:
    for part in ("train", "test"):
        lines = [f"the day was {'fine' if k % 2 else 'cold'}\t{label}" for k, label in enumerate(labels)]
        (folder / f"{part}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    task: Any = "regression" if labels[0] == "0.5" else "classification"
    files = {part: str(folder / f"{part}.tsv") for part in ("train", "test")}
    return DataSection(**files, task=task, max_length=16)


def test_the_metrics_that_are_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    section, base = write(tmp_path, ["no", "yes"] * 4), Pretrained(str(tiny_folder))
    data = load_task_data(section)
    model = load_task_model(base, TaskType.SEQ_CLS, data.label_names).model
    settings = EvaluationSettings(section, TaskType.SEQ_CLS, ("f1", "accuracy"))
    metrics, loss = evaluate(model, data, load_tokenizer(base), settings, tmp_path / "work")
    assert list(metrics) == ["f1", "accuracy"]
    assert loss is not None
    assert loss > 0


def test_what_is_not_defined_is_null(tiny_folder: Path, tmp_path: Path) -> None:
    section, base = write(tmp_path, ["0.5", "1.5"] * 4), Pretrained(str(tiny_folder))
    data = load_task_data(section)
    model: Any = load_task_model(base, TaskType.SEQ_CLS, ()).model
    model.classifier.weight.data.zero_()
    settings = EvaluationSettings(section, TaskType.SEQ_CLS, ("pearson",))
    with pytest.warns(LorankWarning, match="pearson is not defined for these predictions"):
        metrics, loss = evaluate(model, data, load_tokenizer(base), settings, tmp_path / "work")
    assert metrics == {"pearson": None}
    assert loss is not None
