"""`lorank init`: for every kind of data the recipe that is written can be read, and says what it was chosen by."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import BAD, GOOD, tiny_writer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from lorank.cli import app
from lorank.recipe.files import load_recipe
from lorank.tasks.files import read_rows
from lorank.tasks.sft_rows import sft_examples
from lorank.tasks.sft_tokens import encode_sft

MESSAGES = [{"role": "user", "content": "was the day fine"}, {"role": "assistant", "content": "the day was cold"}]
# Name -> row, kind of model, what the recipe says.
ROWS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "chat": ({"messages": MESSAGES}, "decoder", {"task": "chat", "eval": 0.05, "packing": False}),
    "sharegpt": ({"conversations": [{"from": "human", "value": "was it"}]}, "decoder", {"task": "chat", "eval": 0.05}),
    "completion": ({"prompt": "the day", "completion": "was fine"}, "decoder", {"task": "completion", "eval": 0.05}),
    "text": ({"id": 3, "text": "the day was fine"}, "decoder", {"task": "text", "eval": 0.05}),
    "gsm8k": ({"question": "how many", "answer": "3\n#### 7"}, "encoder-decoder", {"task": "gsm8k"}),
    "instruction": ({"instruction": "say", "input": "", "output": "day", "text": "x"}, "decoder", {"task": "instruction"}),
    "boolq": ({"passage": "it was", "question": "was it", "answer": True}, "decoder", {"task": "boolq"}),
    "arc": (
        {"question": "the day was", "choices": {"label": ["A"], "text": ["cold"]}, "answerKey": "A"}, "decoder", {"task": "arc"}
    ),
    "aqua": ({"question": "3", "options": ["A)3"], "rationale": "3", "correct": "A"}, "decoder", {"task": "aqua"}),
    "summarization": ({"document": "the day", "summary": "day"}, "encoder-decoder", {"task": "summarization"}),
    "regression": (
        {"idx": 1, "sentence1": "a day", "sentence2": "the house", "score": 2.5},
        "encoder",
        {"task": "regression", "text": ["sentence1", "sentence2"], "label": "score"},
    ),
    "decoder that classifies": (
        {"review": "the day", "stars": 1}, "decoder", {"task": "classification", "text": "review", "label": "stars"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    writers = {kind: tiny_writer(kind, tiny_folder, base / kind) for kind in ("decoder", "encoder-decoder")}
    return {"encoder": tiny_folder, **writers}


def init(*words: object) -> tuple[int, str]:
    said = CliRunner().invoke(app, ["init", *map(str, words)])
    return said.exit_code, " ".join(said.output.split())


def written(path: Path, row: dict[str, Any], count: int = 40) -> Path:
    path.write_text("\n".join(json.dumps(row) for _ in range(count)))
    return path


@pytest.mark.parametrize("case", ROWS)
def test_a_recipe_for_every_kind_of_data(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    row, kind, wanted = ROWS[case]
    data, output = written(tmp_path / "rows.jsonl", row), tmp_path / "recipe.yaml"
    tested = () if "eval" in wanted else ("--test", data)
    code, said = init(folders[kind], data, *tested, "--output", output)
    assert code == 0, said
    content = yaml.safe_load(output.read_text())
    assert {key: content["data"].get(key) for key in wanted} == wanted
    assert content["train"]["batch_size"] * content["train"]["gradient_accumulation"] == 4, "40 rows"
    assert content["triplets"]["initial_rank"] == 16
    assert all("  # " in line for line in output.read_text().splitlines()[2:] if not line.endswith(":"))
    assert f"lorank headroom {output}" in said
    recipe = load_recipe(output)
    assert (recipe.method, recipe.budget, recipe.model.name) == ("igu-lora", "r=8", str(folders[kind]))


@pytest.mark.parametrize(
    ("method", "keys", "rate"),
    [
        ("igu-lora", {"triplets", "measure", "baselines", "train"}, 2e-3),
        ("sensitivity-lora", {"baselines", "train"}, 5e-4),
        ("lora", {"train"}, 5e-4),
    ],
)
def test_each_kind_of_method_has_its_keys(
    method: str, keys: set[str], rate: float, tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "recipe.yaml"
    files = (tiny_data["train"], "--test", tiny_data["test"])
    code, said = init(tiny_folder, *files, "--output", output, "--method", method, "--budget", "2k")
    assert code == 0, said
    content = yaml.safe_load(output.read_text())
    assert set(content) == {"model", "method", "budget", "data", *keys}
    recipe = load_recipe(output)
    assert recipe.train.learning_rate == rate
    if "measure" in keys:
        assert recipe.measure.every == 4, "90 steps in all"  # type: ignore[union-attr]
    if "baselines" in keys:
        assert recipe.of("lora").train.learning_rate == 5e-4


def test_a_data_set_with_splits(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """A folder is read by `datasets` as a data set of the hub is."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (folder := tmp_path / "mood").mkdir()
    for part in ("train", "validation"):
        lines = [f"the day was {word},{'good' if word in GOOD else 'bad'}" for word in (*GOOD, *BAD)]
        (folder / f"{part}.csv").write_text("\n".join(["sentence,label", *lines]))
    code, said = init(tiny_folder, folder, "--output", tmp_path / "recipe.yaml")
    assert code == 0, said
    data = yaml.safe_load((tmp_path / "recipe.yaml").read_text())["data"]
    named = {"name": str(folder), "train_split": "train", "test_split": "validation"}
    assert data == {**named, "task": "classification", "text": "sentence", "label": "label", "max_length": 32}
    load_recipe(tmp_path / "recipe.yaml")


REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "chat, encoder": ({"messages": MESSAGES}, "encoder", (), ("is an encoder, and the task chat (columns messages) is for",)),
    "text, seq2seq": ({"text": "a day"}, "encoder-decoder", (), ("is an encoder-decoder, and the task text",)),
    "summary, encoder": ({"document": "a", "summary": "b"}, "encoder", (), ("an encoder, which writes no text",)),
    "several": (
        {"messages": MESSAGES, "prompt": "a", "completion": "b"}, "decoder", (), ("fit several tasks: chat, completion; give",)
    ),
    "none": (
        {"a": "day", "b": "house"}, "decoder", (),
        ("the columns a, b fit no task by themselves.", "completion (prompt, completion)"),
    ),
    "two texts": ({"a": "day", "b": "house", "label": 1}, "encoder", (), ("2 may be the text: a, b; give one or two as --text",)),
    "two labels": (
        {"text": "day", "label": 1, "score": 2}, "encoder", (), ("several may be the label: label, score; give one as --label",)
    ),
    "question and answer": (
        {"question": "was it", "answer": "fine"}, "decoder", (),
        ("rename the columns to prompt and completion", "--task summarization --text question --label answer"),
    ),
    "fractions": (
        {"text": "day", "label": 0.5}, "encoder", ("--task", "classification"),
        ("--task classification: 'label' holds numbers with fractions", "give --task regression"),
    ),
    "three texts": ({"a": "x", "b": "y", "c": "z"}, "encoder", ("--text", "a,b,c"), ("--text names 3 columns",)),
    "messages are a string": ({"messages": "the day"}, "decoder", (), ("line 1) has 'the day' as messages; a list",)),
    "messages are strings": ({"messages": ["a", "b"]}, "decoder", (), ("has 'a' as message 0 of messages; one with role",)),
    "messages are null": ({"messages": None}, "decoder", (), ("has None as",)),
    "a number as text": ({"text": 5}, "decoder", (), ("has 5 as text; a text is allowed",)),
    "no test": ({"text": "day", "label": 1}, "encoder", (), ("the task classification needs a test part",)),
    "unknown": ({"text": "day"}, "decoder", ("--task", "chta"), ("--task chta is unknown; allowed: classification",)),
    "all at once": (
        {"text": "day"}, "decoder", ("--label", "mood", "--method", "mine", "--budget", "much"),
        ("3 things", "method 'mine' is unknown", "budget 'much' cannot be read", "no column 'mood'; the data have text"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    row, kind, words, messages = REFUSED[case]
    code, said = init(folders[kind], written(tmp_path / "rows.jsonl", row), *words, "--output", tmp_path / "r.yaml")
    assert code == 1
    for message in messages:
        assert message in said
    assert not (tmp_path / "r.yaml").exists()


def test_a_recipe_that_is_there_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    data, output = written(tmp_path / "rows.jsonl", {"text": "a day"}), tmp_path / "recipe.yaml"
    output.write_text("mine")
    assert "is there already" in init(folders["decoder"], data, "--output", output)[1]
    assert output.read_text() == "mine"
    assert init(folders["decoder"], data, "--output", output, "--overwrite")[0] == 0


def test_texts_of_every_row_in_a_label_column_are_no_classes(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "a day", "label": f"answer {k}"} for k in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, said = init(tiny_folder, tmp_path / "rows.jsonl", "--output", tmp_path / "r.yaml")
    assert code == 1
    assert "every row has another string in 'label', so it is no class" in said


def test_lengths_come_from_the_tokenizer_and_the_positions(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": "day " * n}) for n in (*[40] * 99, 300)))
    code, said = init(folders["decoder"], tmp_path / "rows.jsonl", "--output", tmp_path / "r.yaml")
    assert code == 0
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["data"]["max_length"] == 48, (
        "40 words, [CLS], TRL's [SEP] and the tokenizer's"
    )
    assert "99% of the first 100 rows fit; the longest has 303 tokens" in said


TEMPLATE = (
    "{% for m in messages %}the {{ m.role }} said {{ m.content }} . {% endfor %}"
    "{% if add_generation_prompt %}the assistant said {% endif %}"
)
LONG = [
    {"messages": [{"role": "user", "content": "the day " * 30}, {"role": "assistant", "content": "the house " * 12}]},
    {"conversations": [{"from": "human", "value": "the day " * 30}, {"from": "gpt", "value": "the house " * 12}]},
    {"prompt": "the day " * 30, "completion": "the house " * 12},
    {
        "prompt": [{"role": "user", "content": "the day " * 30}],
        "completion": [{"role": "assistant", "content": "the house " * 12}],
    },
]  # fmt: skip


@pytest.mark.parametrize("row", LONG, ids=["messages", "sharegpt", "plain completion", "conversational completion"])
def test_the_longest_row_of_a_chat_fits(row: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """Counted by what a run reads, which is the template's words, too."""
    shutil.copytree(folders["decoder"], tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chatting")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "chatting")
    data, output = written(tmp_path / "rows.jsonl", row, 5), tmp_path / "r.yaml"
    code, said = init(tmp_path / "chatting", data, "--output", output)
    assert code == 0, said
    section = load_recipe(output).data
    told = sft_examples("train", read_rows(data, read_rows(data, ()).names), section)
    uncut = section.model_copy(update={"max_length": 9999})
    longest = max(encode_sft(told, tokenizer, uncut)["length"])
    assert longest > 84, "60 and 24 words, and what the template writes"
    assert longest <= section.max_length < longest + 16


def test_a_tokenizer_that_is_refused_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["decoder"], folder := tmp_path / "bad")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "extra_ids": 10**9}))
    code, said = init(folder, written(tmp_path / "rows.jsonl", LONG[0], 5), "--output", tmp_path / "r.yaml")
    assert code == 1
    assert "is refused: tokenizer_config.json: extra_ids is 1000000000" in said.replace("\n", " ")


@pytest.mark.parametrize("name", ["a\nseed: 7\n#.jsonl", "a\x07\x1b[31m.jsonl", "a\u2028\x85b.jsonl"])
def test_no_name_of_a_file_changes_the_recipe(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    data, output = written(tmp_path / name, {"text": "a day"}), tmp_path / "recipe.yaml"
    code, said = init(folders["decoder"], data, "--output", output)
    assert code == 0, said
    content = yaml.safe_load(output.read_text())
    assert content["data"]["train"] == str(data)
    assert "seed" not in content
    assert output.read_text().replace("\n", "").isprintable()


def test_no_name_of_a_column_changes_the_recipe(tiny_folder: Path, tmp_path: Path) -> None:
    data, output = (
        written(tmp_path / "rows.jsonl", {"te\nxt: 1": "the day", "la'b\x07 #\nel": "fine"}),
        tmp_path / "r.yaml",
    )
    words = ("--text", "te\nxt: 1", "--label", "la'b\x07 #\nel", "--test", data)
    code, said = init(tiny_folder, data, *words, "--output", output)
    assert code == 0, said
    found = yaml.safe_load(output.read_text())["data"]
    assert (found["text"], found["label"]) == ("te\nxt: 1", "la'b\x07 #\nel")
    assert "the training file itself" in said


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the scoring set is a single batch")
def test_the_recipe_runs(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "recipe.yaml"
    code, said = init(
        tiny_folder, tiny_data["train"], "--test", tiny_data["test"], "--output", output, "--budget", "r=1"
    )
    assert code == 0, said
    words = ["run", str(output), "train.max_steps=12", "measure.every=1", "--output", str(tmp_path / "run")]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
