"""Metrics and loss of a model on the test part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tests.conftest import tiny_writer
from transformers import AutoTokenizer

from lorank.errors import DataError, LorankWarning, RecipeError
from lorank.models.loading import load_task_model, load_tokenizer
from lorank.models.pretrained import Pretrained
from lorank.tasks.data import load_task_data
from lorank.tasks.evaluation import evaluate
from lorank.tasks.evaluation_settings import EvaluationSettings
from lorank.tasks.general_text import check_general_text, general_losses
from lorank.tasks.loss_file import LOSSES, read_losses
from lorank.tasks.section import DataSection
from lorank.tasks.text_evaluation import text_of


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


def test_losses_are_kept_in_the_order_of_the_rows(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [("the day was fine and bright", "yes"), ("cold", "no"), ("the day was", "yes"), ("cold cold", "no")]
    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *(f"{t}\t{label}" for t, label in rows), ""]))
    files = {part: str(tmp_path / f"{part}.tsv") for part in ("train", "test")}
    section, base = DataSection(**files, max_length=16), Pretrained(str(tiny_folder))
    data, tokenizer = load_task_data(section), load_tokenizer(base)
    model: Any = load_task_model(base, TaskType.SEQ_CLS, data.label_names).model.eval()
    model.classifier.weight.data.normal_()
    _, loss = evaluate(model, data, tokenizer, EvaluationSettings(section, TaskType.SEQ_CLS), tmp_path / "work")
    kept = read_losses(tmp_path / "work" / LOSSES)
    with torch.no_grad():
        alone = [
            float(model(**tokenizer(text, return_tensors="pt"), labels=torch.tensor([int(label == "yes")])).loss)
            for text, label in rows
        ]
    assert kept == pytest.approx(alone, abs=1e-5)
    assert kept.mean() == pytest.approx(loss, rel=1e-5)
    (tmp_path / "work" / LOSSES).write_bytes(b"no losses")
    with pytest.raises(DataError, match="damaged"):
        read_losses(tmp_path / "work" / LOSSES)


def test_losses_of_texts_and_what_a_decoder_forgets(tiny_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("the day was fine and the house was cold " * 30)
    rows = [("was the day cold?", "the day", "true"), ("was it?", "the house was fine", "no")]
    content = "".join(f'{{"question": "{q}", "passage": "{p}", "answer": "{a}"}}\n' for q, p, a in rows)
    (tmp_path / "rows.jsonl").write_text(content)
    file = str(tmp_path / "rows.jsonl")
    section = DataSection(train=file, test=file, task="boolq", max_length=24, general_text=str(text))
    base, kind = Pretrained(str(tiny_writer("decoder", tiny_folder, tmp_path / "model"))), TaskType.CAUSAL_LM
    tokenizer, data, settings = load_tokenizer(base), load_task_data(section), EvaluationSettings(section, kind)
    model: Any = get_peft_model(load_task_model(base, kind, ()).model, LoraConfig(r=2, target_modules=["q_proj"]))
    evaluate(model, data, tokenizer, settings, tmp_path / "work")
    sums, counts = np.load(tmp_path / "work" / LOSSES)
    assert counts.tolist() == [2, 2]  # the answer and the end of the text
    assert read_losses(tmp_path / "work" / LOSSES) == pytest.approx(sums / counts)
    fresh = general_losses(model, None, tokenizer, settings, tmp_path / "work")
    assert fresh["metrics"]["loss"] == pytest.approx(fresh["metrics"]["base loss"], rel=1e-6)
    for name, factor in model.named_parameters():
        if "lora_B" in name:
            factor.data.normal_()
    changed = general_losses(model, None, tokenizer, settings, tmp_path / "work")
    assert changed["metrics"]["base loss"] == pytest.approx(fresh["loss"], rel=1e-6)
    assert abs(changed["loss"] - fresh["loss"]) > 1e-3
    with pytest.raises(RecipeError, match="general_text is for decoders"):
        check_general_text(tokenizer, section, TaskType.SEQ_2_SEQ_LM)
    for written, message in (("", "has 0 tokens"), (None, "cannot be read")):
        text.unlink() if written is None else text.write_text(written)
        with pytest.raises(DataError, match=message):
            check_general_text(tokenizer, section, kind)


def test_metrics_of_tokens_need_nothing_written(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [("was the day cold?", "the day", "true"), ("was it?", "the house was fine", "no")]
    content = "".join(f'{{"question": "{q}", "passage": "{p}", "answer": "{a}"}}\n' for q, p, a in rows)
    (tmp_path / "rows.jsonl").write_text(content)
    file, work = str(tmp_path / "rows.jsonl"), tmp_path / "work"
    base, kind = Pretrained(str(tiny_writer("decoder", tiny_folder, tmp_path / "model"))), TaskType.CAUSAL_LM
    section = DataSection(train=file, test=file, task="boolq", max_length=24)
    tokenizer, data, model = load_tokenizer(base), load_task_data(section), load_task_model(base, kind, ()).model
    both = EvaluationSettings(section, kind, ("token_accuracy", "log_likelihood"))
    metrics, _ = evaluate(model, data, tokenizer, both, work)
    sums, counts = np.load(work / LOSSES)
    assert list(metrics) == ["token_accuracy", "log_likelihood"]
    assert metrics["log_likelihood"] == pytest.approx(-float(sums.sum() / counts.sum()), rel=1e-6)
    assert metrics["token_accuracy"] in (0, 0.25, 0.5, 0.75, 1)  # of four tokens
    assert not (work / "predictions.jsonl").exists()
    written = EvaluationSettings(section, kind, ("exact_match", "log_likelihood"))
    found, _ = evaluate(model, data, tokenizer, written, work)
    assert list(found) == ["exact_match", "log_likelihood"]
    assert found["log_likelihood"] == metrics["log_likelihood"]
    assert (work / "predictions.jsonl").exists()


def test_tokens_of_the_recipe_are_part_of_what_is_written(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<yes>"]})
    ids = tokenizer("[CLS] fine <yes> [SEP] [PAD]", add_special_tokens=False)["input_ids"]
    assert text_of(tokenizer, ids) == "fine"
    assert text_of(tokenizer, ids, ("<yes>",)) == "fine <yes>"
