"""Tasks that write: what is taught, what is cut, what counts as an answer, and whole runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from peft import PeftModel, TaskType
from rich.console import Console
from rouge_score import rouge_scorer
from tests.conftest import BAD, GOOD, save_tiny, tiny_writer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorank.errors import DataError, LorankWarning, RecipeError
from lorank.models.loading import load_tokenizer
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe
from lorank.runs.recipe_values import pretrained_of
from lorank.runs.run import run
from lorank.tasks.data import load_task_data
from lorank.tasks.encoding import collator, tokenize
from lorank.tasks.metrics import choose_metrics
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import IGNORED
from lorank.tasks.text_tasks import TEXT_TASKS, choice, number, plain, stated, truth

QUIET = Console(quiet=True)
KINDS = {"decoder": TaskType.CAUSAL_LM, "encoder-decoder": TaskType.SEQ_2_SEQ_LM}
ROWS: dict[str, dict[str, Any]] = {
    "summarization": {"document": "the day was fine and bright", "summary": "fine day"},
    "instruction": {"instruction": "was the day", "input": "cold", "output": "the correct answer is cold"},
    "boolq": {"passage": "the day was cold", "question": "was the day cold", "answer": True},
    "arc": {"question": "the day was", "choices": {"label": ["A", "B"], "text": ["cold", "warm"]}, "answerKey": "B"},
    "gsm8k": {"question": "how many", "answer": "3 and 4 is 7\n#### 7"},
    "aqua": {"question": "how many", "options": ["A)3", "B)7"], "rationale": "3 and 4 is 7", "correct": "B"},
}  # fmt: skip
WRITTEN = {
    "summarization": "day fine", "instruction": "I say the Answer is Cold!", "boolq": "Yes, it was.", "arc": "B. warm",
    "gsm8k": "so it is #### 7.0", "aqua": "Therefore the answer is (B).",
}  # fmt: skip


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., str]:
    def write(task: str, count: int = 4, **changes: Any) -> str:
        path = tmp_path / f"{task}-{count}-{len(changes)}.jsonl"
        path.write_text("\n".join(json.dumps({**ROWS[task], **changes}) for _ in range(count)))
        return str(path)

    return write


def section(task: str, path: str, **options: Any) -> DataSection:
    return DataSection(train=path, test=path, task=task, **options)


def recipe_of(model: Path, data: dict[str, Any], **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "model": str(model), "budget": "r=1", "data": data, "checkpoint_every": 4, "triplets": {"initial_rank": 2},
        "train": {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2},
    }  # fmt: skip
    if changes.get("method", "i-lora") == "i-lora":
        content["measure"] = {"scoring_batch_size": 8}
    return make_recipe({**content, **changes})


@pytest.mark.parametrize("task", ROWS)
def test_an_answer_is_found_in_the_target_and_in_what_is_written(task: str, rows_file: Callable[..., str]) -> None:
    data = load_task_data(section(task, rows_file(task)))
    first = data.train[0]
    answer = TEXT_TASKS[task].answer
    assert answer(first["target"]) is not None
    same = answer(first["target"]) == answer(WRITTEN[task])
    assert same == (task != "summarization")
    metric = choose_metrics(task, ["exact_match"])["exact_match"]
    assert metric([first["target"]] * 4, [WRITTEN[task], first["target"], "", "xyz"]) == (2 if same else 1) / 4
    assert first["prompt"]
    assert all(brace not in first["prompt"] + first["cue"] for brace in "{}")
    assert data.label_names == ()


def test_rules_of_answers() -> None:
    assert number("#### 1,234") == number("a #### 3\n#### $1234.00") == "1234"
    assert number("#### 0.0") == "0"
    assert number("#### -0.50") == number("#### -$.5") == number("#### **$-0.5**") == "-0.5"
    assert number("the number is 7") is None
    assert number("#### none") is None
    same = (
        "C",
        "(C) because",
        "A? No, the answer is C.",
        "Answer: C",
        "**C**",
        "the answer is **C**",
        "C: warm",
        "Answer is (C)",
        "C\nQuestion: which?",
        "The answer is $C$",
        "Answer: C\nThe answer is 3.5 km",
    )
    assert {choice(text) for text in same} == {"C"}
    for text in ("A planet", "because", "The answer is a prime", "Cold", "the answer is Cold", "3.5 km"):
        assert choice(text) is None, text
    assert stated("The answer is answer3") == "answer3"
    assert stated("I think. The answer is New York. Or not.") == "new york"
    assert stated("answer: 3.14") == "3.14" != stated("the answer is 3.99")
    assert stated("The answer is $1,000.0") == stated("so the answer is 1000") == "1000"
    assert stated("The  Cat. ") == plain("the cat")
    assert truth("No, true") == "false"
    assert truth("maybe") is None


def test_rouge_is_that_of_rouge_score_with_a_stemmer_averaged_over_texts() -> None:
    targets, written = ["the cats sat on the mat", "a dog"], ["the cat sat down", "no"]
    chosen = choose_metrics("summarization", None)
    assert list(chosen) == ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(list(chosen), use_stemmer=True)
    found = [scorer.score(t, w) for t, w in zip(targets, written, strict=True)]
    for name, metric in chosen.items():
        assert metric(targets, written) == np.mean([one[name].fmeasure for one in found])
    # By hand: three of six and of four words, stemmed; two of five and of three pairs.
    assert chosen["rouge1"](targets[:1], written[:1]) == pytest.approx(2 * (3 / 6) * (3 / 4) / (3 / 6 + 3 / 4))
    assert chosen["rouge2"](targets[:1], written[:1]) == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3))
    with pytest.raises(RecipeError, match="'accuracy' is no metric of gsm8k"):
        choose_metrics("gsm8k", ["accuracy"])


def test_only_the_target_is_taught_and_only_the_body_is_cut(
    tiny_folder: Path, tmp_path: Path, rows_file: Callable[..., str]
) -> None:
    path = rows_file("summarization", document="the day was fine " * 10)
    texts: dict[str, Any] = {"train": path, "test": path, "task": "summarization", "prompt": "{document} and house"}
    for kind in ("decoder", "encoder-decoder"):
        recipe = recipe_of(tiny_writer(kind, tiny_folder, tmp_path / kind), {**texts, "max_length": 12})
        tokenizer, data = load_tokenizer(pretrained_of(recipe)), load_task_data(recipe.data)
        with pytest.warns(LorankWarning, match="4 of 4 prompts are longer than data.max_length"):
            rows = tokenize(data.train, tokenizer, recipe.data, KINDS[kind])
        row = rows[0]
        read = tokenizer.convert_ids_to_tokens(row["input_ids"])
        taught = tokenizer.convert_ids_to_tokens([label for label in row["labels"] if label != IGNORED])
        assert row["length"] == (12 + 3 if kind == "decoder" else 12 + len(taught))
        if kind == "decoder":
            assert read[0] == "[CLS]"
            assert read[10:] == ["and", "house", "fine", "day", "[SEP]"]
            assert row["labels"][:12] == [IGNORED] * 12
            assert taught == ["fine", "day", "[SEP]"]
        else:
            assert len(read) == 12
            assert read[-3:] == ["and", "house", "[SEP]"]
            assert taught[-3:] == ["fine", "day", "[SEP]"]
        rows = rows.remove_columns("length")
        batch = collator(tokenizer, KINDS[kind])([rows[0], {**rows[1], "labels": rows[1]["labels"][-2:]}])
        assert batch["labels"].shape[0] == 2
        assert (batch["labels"][1] == IGNORED).any()


def test_the_question_behind_a_long_passage_stays_and_a_cut_target_does_not_end(
    tiny_folder: Path, tmp_path: Path, rows_file: Callable[..., str]
) -> None:
    long = rows_file("boolq", passage="the day was fine " * 10)
    model = tiny_writer("decoder", tiny_folder, tmp_path / "model")
    recipe = recipe_of(model, {"train": long, "test": rows_file("boolq"), "task": "boolq", "max_length": 20})
    tokenizer, data = load_tokenizer(pretrained_of(recipe)), load_task_data(recipe.data)
    with pytest.warns(LorankWarning, match="4 of 4 prompts"):
        row = tokenize(data.train, tokenizer, recipe.data, KINDS["decoder"])[0]
    read = tokenizer.decode(row["input_ids"])
    assert "was the day cold" in read  # the question
    assert row["labels"][:20] == [IGNORED] * 20
    path = rows_file("aqua", rationale="the day was fine " * 10)
    for kind in ("decoder", "encoder-decoder"):
        data_ = {"train": path, "test": path, "task": "aqua", "max_target_length": 6}
        recipe = recipe_of(tiny_writer(kind, tiny_folder, tmp_path / kind), data_)
        with pytest.warns(LorankWarning, match="0 of 4 prompts .* 4 targets than"):
            row = tokenize(load_task_data(recipe.data).train, tokenizer, recipe.data, KINDS[kind])[0]
        taught = [label for label in row["labels"] if label != IGNORED]
        assert len(taught) == 6
        assert tokenizer.eos_token_id not in taught


def test_templates_of_prompts(rows_file: Callable[..., str]) -> None:
    def first(task: str, **options: Any) -> tuple[str, str]:
        row = load_task_data(section(task, rows_file(task), **options)).train[0]
        return row["prompt"], row["cue"]

    assert first("boolq") == ("the day was cold", "\n\nQuestion: was the day cold?\nTrue or false?")
    path = rows_file("instruction", input=None)
    assert load_task_data(section("instruction", path)).train[0]["prompt"] == "was the day"
    assert first("arc", prompt="{choices} {question} A:") == ("A. cold\nB. warm the day was", " A:")
    assert first("arc", prompt="Which? {choices} A:") == ("Which? A. cold\nB. warm", " A:")
    two = {"text": ("document", "summary"), "label": "summary"}
    assert first("summarization", **two) == ("the day was fine and bright\nfine day", "\nSummary:")


def test_rows_are_the_same_from_json_and_parquet(tmp_path: Path) -> None:
    for task, row in ROWS.items():
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        (tmp_path / "a.json").write_text(json.dumps([row], indent=1))
        Dataset.from_list([row]).to_parquet(str(tmp_path / "a.parquet"))
        found = [load_task_data(section(task, str(tmp_path / f"a.{kind}"))) for kind in ("jsonl", "json", "parquet")]
        assert found[0].train[:] == found[1].train[:] == found[2].train[:]
        assert found[0].hashes == found[1].hashes == found[2].hashes


def test_a_class_label_of_a_text_task_is_its_name(tmp_path: Path) -> None:
    row = {**ROWS["boolq"], "answer": 0}
    kinds = {name: Value("string") for name in row} | {"answer": ClassLabel(names=["true", "false"])}
    Dataset.from_list([row], features=Features(kinds)).to_parquet(str(tmp_path / "a.parquet"))
    assert load_task_data(section("boolq", str(tmp_path / "a.parquet"))).train["target"][0] == "true"


# A word decides what is written: the model has to read the prompt.
def mood_rows(count: int) -> str:
    rows = []
    for number_ in range(count):
        mood = (GOOD if number_ % 2 else BAD)[number_ // 2 % 4]
        rows.append({"instruction": f"the day was {mood}", "input": "", "output": "warm" if number_ % 2 else "cold"})
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("i-lora", "encoder-decoder"),
        pytest.param("igu-lora", "decoder", marks=pytest.mark.long),
        pytest.param("sensitivity-lora", "decoder", marks=pytest.mark.long),
        pytest.param("i-lora", "decoder", marks=pytest.mark.long),
        pytest.param("igu-lora", "encoder-decoder", marks=pytest.mark.long),
        pytest.param("sensitivity-lora", "encoder-decoder", marks=pytest.mark.long),
    ],
)
def test_a_whole_run(kind: str, method: str, tiny_folder: Path, tmp_path: Path) -> None:
    for part, count in (("train", 96), ("test", 24)):
        (tmp_path / f"{part}.jsonl").write_text(mood_rows(count))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "task": "instruction"}
    data |= {"prompt": "{instruction} and", "max_length": 16, "max_target_length": 4}  # type: ignore[dict-item]
    model = tiny_writer(kind, tiny_folder, tmp_path / "model")
    steps, rate = (300, 1e-2) if method == "sensitivity-lora" else (12, 3e-2)
    stage = {"max_steps": steps, "batch_size": 16, "learning_rate": rate}
    more: dict[str, Any] = {"measure": {"examples": 32}} if method == "sensitivity-lora" else {}
    if method == "igu-lora":
        more = {"measure": {"every": 2}}
    recipe = recipe_of(model, data, method=method, train=stage, triplets={"initial_rank": 3}, budget="r=2", **more)
    result = run(recipe, tmp_path / "out", QUIET)
    found = result.results[method]
    assert set(found["metrics"]) == {"exact_match"}
    if method == "sensitivity-lora":
        assert found["metrics"]["exact_match"] >= 0.75  # half of them are one word
    assert 0 < found["loss"] < 20
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}[kind]
    assert config["modules_to_save"] is None
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert {"decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}[kind] in card
    predictions = next((tmp_path / "out").rglob("predictions.jsonl")).read_text().splitlines()
    assert len(predictions) == 24
    assert set(json.loads(predictions[0])) == {"prompt", "target", "written"}


def test_what_is_written_is_what_generate_writes_one_by_one(tiny_folder: Path, tmp_path: Path) -> None:
    """Batches padded at the left, the prompt taken off: the same texts as a user gets for a prompt alone."""
    rows = [{"instruction": " ".join(["the day was"] * (1 + k % 3)), "input": "", "output": "cold"} for k in range(20)]
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "task": "instruction"}
    data |= {"prompt": "{instruction} and", "max_target_length": 5}  # type: ignore[dict-item]
    recipe = recipe_of(tiny_writer("decoder", tiny_folder, tmp_path / "model"), data, method="lora")
    run(recipe, tmp_path / "out", QUIET)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    lines = next((tmp_path / "out").rglob("predictions.jsonl")).read_text().splitlines()
    for line in map(json.loads, lines[:: len(lines) // 4]):
        ids = torch.tensor([tokenizer(line["prompt"])["input_ids"][:-1]])  # without [SEP]
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == line["written"]


def test_refusals(tiny_folder: Path, tmp_path: Path, rows_file: Callable[..., str]) -> None:
    for task, changes, message in (
        ("boolq", {"passage": 3}, "example 0 has 3 as passage"),
        ("arc", {"choices": ["A", "B"]}, "does not have the form of this task"),
        ("gsm8k", {"answer": " "}, "as the target"),
        ("summarization", {"document": None}, "has None as document"),
        ("gsm8k", {"answer": "42"}, "has no answer in its target '42'"),
        ("boolq", {"answer": None}, "has None in 'answer'"),
        ("boolq", {"answer": "maybe"}, "does not have the form of this task"),
        ("aqua", {"options": "A)1 B)2"}, "options is a text"),
        ("aqua", {"options": ["A)1", None]}, "options has None; a list of texts"),
        ("aqua", {"rationale": 3}, "example 0 has 3 as rationale"),
        ("arc", {"choices": {"label": ["A", "B"], "text": ["x", 3.5]}}, r"text has 3.5; .*line 1\)"),
        ("instruction", {"input": 0}, "example 0 has 0 as input"),
    ):
        with pytest.raises(DataError, match=message):
            load_task_data(section(task, rows_file(task, **changes)))
    with pytest.raises(DataError, match=r"data\.task: train has no column 'passage'"):
        load_task_data(section("boolq", rows_file("gsm8k")))
    with pytest.raises(DataError, match=r"data\.text: train has no column 'document'"):
        load_task_data(section("summarization", rows_file("gsm8k")))
    path = rows_file("gsm8k")
    with pytest.raises(RecipeError, match=r"rows of this task have \{question\}"):
        load_task_data(section("gsm8k", path, prompt="{problem} A:"))
    decoder = tiny_writer("decoder", tiny_folder, tmp_path / "decoder")
    for data, message in (
        ({"prompt": "Hello"}, "names no column in braces"),
        ({"text": "question"}, "the columns of gsm8k are its own"),
        ({"task": "classification", "beams": 3}, "beams is for tasks that write"),
        ({"task": "gsmk8"}, "data.task"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe_of(decoder, {"train": path, "test": path, "task": "gsm8k", **data})
    texts = {"train": path, "test": path, "task": "gsm8k"}
    lora = {"method": "lora"}
    long = {**texts, "prompt": "{question} the the the the the the the the", "max_length": 8}
    with pytest.raises(RecipeError, match=r"no room for a prompt of which 8 tokens are never cut"):
        run(recipe_of(decoder, long, **lora), tmp_path / "o", QUIET)
    reader = tiny_writer("encoder-decoder", tiny_folder, tmp_path / "reader")
    with pytest.raises(RecipeError, match=r"data.max_target_length is 2000, but .* has 1024 positions"):
        run(recipe_of(reader, {**texts, "max_target_length": 2000}, **lora), tmp_path / "o", QUIET)
    short = {**texts, "max_length": 16, "max_target_length": 8}
    with pytest.raises(RecipeError, match="no token for the end of a text"):
        run(recipe_of(tiny_folder, short, **lora), tmp_path / "o", QUIET)
    headless = AutoModelForCausalLM.from_pretrained(decoder)
    headless.config.tie_word_embeddings = False
    save_tiny(headless.model, tiny_folder, tmp_path / "headless", eos_token="[SEP]")
    with pytest.raises(RecipeError, match=r"has no weights for 'lm_head\.weight', so it cannot write"):
        run(recipe_of(tmp_path / "headless", short, **lora), tmp_path / "p", QUIET)
