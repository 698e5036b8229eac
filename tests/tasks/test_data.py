import json
import os
from pathlib import Path

import datasets
import pandas
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import TaskType

from lorank import LorankError
from lorank.errors import DataError
from lorank.tasks.data import hold_out, load_task_data
from lorank.tasks.encoding import tokenize
from lorank.tasks.section import DataSection

ROWS = [("the day was fine", "good"), ('a "bare quote', "bad"), ("null", "good"), ("NA", "bad")]


def section(tmp_path: Path, suffix: str = ".tsv", rows=ROWS, test_rows=None, **options) -> DataSection:
    for part, content in (("train", rows), ("test", rows if test_rows is None else test_rows)):
        frame, path = pandas.DataFrame(content, columns=["text", "label"]), tmp_path / f"{part}{suffix}"
        if suffix == ".tsv":
            path.write_text("\n".join("\t".join(map(str, row)) for row in [("text", "label"), *content]) + "\n")
        elif suffix == ".csv":
            frame.to_csv(path, index=False)
        elif suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_json(path, orient="records", lines=True)
    paths = {part: str(tmp_path / f"{part}{suffix}") for part in ("train", "test")}
    return DataSection(**{**paths, **options})


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    data = load_task_data(section(tmp_path, suffix))
    assert data.train["text_1"][:] == [text for text, _ in ROWS]
    assert data.train["labels"][:] == [1, 0, 1, 0]
    assert data.label_names == ("bad", "good")
    assert data.hashes["train"] == load_task_data(section(tmp_path, ".tsv")).hashes["train"]


def test_number_labels_are_classes_in_order(tmp_path: Path) -> None:
    data = load_task_data(section(tmp_path, ".parquet", rows=[("a", 10), ("b", 2), ("c", 10)]))
    assert data.label_names == ("2", "10")
    assert data.train["labels"][:] == [1, 0, 1]


def test_regression_labels_are_numbers(tmp_path: Path) -> None:
    data = load_task_data(section(tmp_path, rows=[("a", 1.5), ("b", 2)], task="regression"))
    assert data.train["labels"][:] == [1.5, 2.0]
    assert data.label_names == ()


@pytest.mark.parametrize(
    ("rows", "test_rows", "options", "message"),
    [
        (ROWS, None, {"text": "txt"}, r"no column 'txt'; it has text, label"),
        (ROWS, None, {"text": ["text", "other"]}, "no column 'other'"),
        (ROWS, None, {"label": "y"}, "data.label: train has no column 'y'"),
        ([("a", "x"), ("b", "x")], None, {}, "single class 'x'"),
        (ROWS, [("a", "ugly")], {}, "label 'ugly', which no training example has; known: bad, good"),
        ([("a", 0.5), ("b", 1.5)], None, {}, "regression"),
        ([("a", "x"), ("b", "1")], None, {"task": "regression"}, "regression needs numbers"),
        ([("a", "nan"), ("b", "1")], None, {"task": "regression"}, "regression needs numbers"),
        ([("a", "x"), ("b", "")], None, {}, "example 1 has '' in 'label'"),
        ([], None, {}, "no examples|cannot be read|is empty"),
    ],
)
def test_bad_data_is_named_before_anything_is_loaded(tmp_path: Path, rows, test_rows, options, message: str) -> None:
    with pytest.raises(LorankError, match=message):
        load_task_data(section(tmp_path, rows=rows, test_rows=test_rows, **options))


def test_cells_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    rows = [("1", "01"), ("true", "02"), ("3.50", "x")]
    data = load_task_data(section(tmp_path, ".csv", rows=rows, test_rows=[("4", "02"), ("5", "01")]))
    assert data.train["text_1"][:] == ["1", "true", "3.50"]
    assert data.label_names == ("01", "02", "x")
    assert data.test["labels"][:] == [1, 0]
    whole = load_task_data(
        section(tmp_path, ".csv", rows=[("a", "1"), ("b", "2.0")], test_rows=[("c", "1.0"), ("d", "2")])
    )
    assert (whole.label_names, whole.test["labels"][:]) == (("1", "2"), [0, 1])


def test_a_row_with_a_field_too_many_is_named(tmp_path: Path) -> None:
    good = section(tmp_path, ".csv")
    (tmp_path / "train.csv").write_text("text,label\nfine,good\n\nwell, rather dull,bad\n")
    with pytest.raises(LorankError, match="line 4 has 3 fields where the header has 2"):
        load_task_data(good)
    (tmp_path / "train.csv").write_text("text,text,label\na,b,c\n")
    with pytest.raises(LorankError, match="names a column twice"):
        load_task_data(good)


@pytest.mark.parametrize("label", [["a"], {"a": 1}, None])
def test_labels_that_are_no_label_are_named(tmp_path: Path, label) -> None:
    good = section(tmp_path, ".jsonl")
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x", "label": label}) + "\n")
    with pytest.raises(LorankError, match=r"data.label: train example 0|single class"):
        load_task_data(good)


def test_regression_needs_labels_that_differ(tmp_path: Path) -> None:
    with pytest.raises(LorankError, match="two different labels"):
        load_task_data(section(tmp_path, rows=[("a", 1), ("b", 2)], test_rows=[("a", 1), ("b", 1)], task="regression"))


def test_missing_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(LorankError, match="train example 1 has None"):
        load_task_data(section(tmp_path, ".parquet", rows=[("a", "x"), (None, "y")]))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("missing.tsv", "no such file"),
        ("train.docx", "unknown kind '.docx'"),
        ("empty.tsv", "is empty"),
        ("broken.parquet", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, train: str, message: str) -> None:
    good = section(tmp_path)
    (tmp_path / "train.docx").write_text("x")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(LorankError, match=message):
        load_task_data(good.model_copy(update={"train": str(tmp_path / train)}))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.floats(0.05, 0.9), st.integers(0, 5))
def test_the_scoring_set_shares_no_text_with_the_rest(contents: list[str], fraction: float, seed: int) -> None:
    rows = Dataset.from_dict({"content": contents, "labels": list(range(len(contents)))})
    try:
        train, scoring = hold_out(rows, fraction, seed)
    except LorankError:
        assert len(set(contents)) == 1 or round(fraction * len(contents)) == 0
        return
    assert not set(train["content"]) & set(scoring["content"])
    assert sorted([*train["labels"], *scoring["labels"]]) == list(range(len(contents)))
    assert len(scoring) >= round(fraction * len(contents)) or len(set(train["content"])) == 1


def test_pairs_are_encoded_together(tmp_path: Path, tiny_recipe, tiny_tokenizer) -> None:
    frame = pandas.DataFrame(
        [("the day", "was fine", "x"), ("the house", "was cold", "y")], columns=["a", "b", "label"]
    )
    frame.to_csv(tmp_path / "train.csv", index=False)
    path = str(tmp_path / "train.csv")
    recipe = tiny_recipe(data={"train": path, "test": path, "text": ["a", "b"], "max_length": 8})
    data = load_task_data(recipe.data)
    encoded = tokenize(data.train, tiny_tokenizer, recipe.data, TaskType.SEQ_CLS)
    assert encoded["length"][0] == 7  # [CLS] the day [SEP] was fine [SEP]
    assert set(encoded.column_names) >= {"input_ids", "attention_mask", "labels", "length"}


def test_a_hub_data_sets_class_names_keep_their_numbers(tmp_path: Path, monkeypatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "maybe", "a yes"])}
    )
    splits = {
        "train": Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 2]}, features=features),
        "validation": Dataset.from_dict({"text": ["d"], "label": [1]}, features=features),
    }
    asked = []

    def hub(name, config, split):
        asked.append((name, config, split))
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", hub)
    data = load_task_data(DataSection(name="some/set", config="small"))
    assert asked == [("some/set", "small", "train"), ("some/set", "small", "validation")]
    assert data.label_names == ("no", "maybe", "a yes")
    assert (data.train["labels"][:], data.test["labels"][:]) == ([2, 0, 2], [1])


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_strings_that_look_like_dates_stay_strings(tmp_path: Path) -> None:
    days = [f"2024-05-{day:02d}" for day in range(1, 9)]
    path = write(tmp_path / "a.jsonl", [{"instruction": "Which day?", "input": day, "output": day} for day in days])
    data = load_task_data(DataSection(train=path, test=path, task="instruction"))
    assert data.train["target"][:] == days
    path = write(tmp_path / "b.jsonl", [{"text": day, "label": day[:7] + f"-0{k % 2}"} for k, day in enumerate(days)])
    data = load_task_data(DataSection(train=path, test=path))
    assert (data.train["text_1"][:], data.label_names) == (days, ("2024-05-00", "2024-05-01"))


def test_both_parts_meet_whatever_their_files_are(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1.0}, {"text": "c", "label": "2"}]
    )
    (tmp_path / "test.csv").write_text("text,label\nd,2\ne,1\nf,0.0\n")
    data = load_task_data(DataSection(train=train, test=str(tmp_path / "test.csv")))
    assert (data.label_names, data.test["labels"][:]) == (("0", "1", "2"), [2, 1, 0])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad", "mad"])}
    )
    declared = Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 1]}, features=features)
    declared.to_parquet(str(tmp_path / "train.parquet"))
    (tmp_path / "test.csv").write_text("text,label\nd,mad\ne,sad\n")
    data = load_task_data(DataSection(train=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.csv")))
    assert (data.label_names, data.train["labels"][:], data.test["labels"][:]) == (
        ("sad", "glad", "mad"),
        [2, 0, 1],
        [2, 0],
    )


def test_a_missing_label_is_named_and_no_class(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 0.0}\n\n{"text": "b", "label": 1.0}\n{"text": "c", "label": NaN}\n')
    with pytest.raises(
        DataError, match=r"train example 2 has nan in 'label'; the label is missing; .*\(a.jsonl, line 4\)"
    ):
        load_task_data(DataSection(train=str(path), test=str(path)))


def test_numbers_of_any_size_are_their_own_classes(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 2**64 + 1}, {"text": "b", "label": 2**64}, {"text": "c", "label": "x"}]
    path = write(tmp_path / "a.jsonl", rows)  # a column of mixed types, too
    data = load_task_data(DataSection(train=path, test=path))
    assert (data.label_names, data.train["labels"][:]) == ((str(2**64), str(2**64 + 1), "x"), [1, 0, 2])


@pytest.mark.parametrize("text", [None, 7, ["a"], float("nan")])
def test_texts_that_are_none_are_named_with_their_line(tmp_path: Path, text) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": 0}, {"text": text, "label": 1}])
    with pytest.raises(DataError, match=r"train example 1 has .* in 'text'; texts are allowed \(a.jsonl, line 2\)"):
        load_task_data(DataSection(train=path, test=path))
    path = write(tmp_path / "b.jsonl", [{"instruction": text, "input": "", "output": "x"}])
    with pytest.raises(DataError, match=r"train example 0 has .* \(b.jsonl, line 1\)"):
        load_task_data(DataSection(train=path, test=path, task="instruction"))


def test_a_column_that_is_nearly_named_is_proposed(tmp_path: Path) -> None:
    for header, message in (
        ("text, label", "did you mean ' label'"),
        ("text,Label", "did you mean 'Label'"),
        ("text,labels", "did you mean 'labels'"),
        ("text,y", "it has text, y$"),
    ):
        (tmp_path / "a.csv").write_text(f"{header}\na,b\n")
        with pytest.raises(DataError, match=message):
            load_task_data(DataSection(train=str(tmp_path / "a.csv"), test=str(tmp_path / "a.csv")))


def test_the_hash_tells_texts_and_labels_and_not_kinds_of_files(tmp_path: Path) -> None:
    def hashed(rows) -> str:
        path = write(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in rows])
        return load_task_data(DataSection(train=path, test=path)).hashes["train"]

    same = hashed([("a", 0), ("b", 1)])
    assert hashed([("a", "0"), ("b", 1.0)]) == same
    assert len({same, hashed([("a", 1), ("b", 0)]), hashed([("a", 0), ("c", 1)]), hashed([("b", 1), ("a", 0)])}) == 4


def test_a_folder_of_this_machine_is_read_anew(tmp_path: Path) -> None:
    folder, seen = tmp_path / "set", []
    folder.mkdir()
    for word in ("old", "new"):
        for part in ("train", "validation"):
            write(folder / f"{part}.jsonl", [{"text": f"{word} {i}", "label": i} for i in range(2)])
            os.utime(folder / f"{part}.jsonl", (10**9, 10**9))
        seen.append(load_task_data(DataSection(name=str(folder))).train["text_1"][0])
    assert seen == ["old 0", "new 0"]


def test_no_label_of_a_hub_data_set_is_missing(monkeypatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    splits = {
        "train": Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features),
        "test": Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: splits[split])
    with pytest.raises(DataError, match="test example 0 has -1 in 'label'; the label is missing"):
        load_task_data(DataSection(name="some/set", test_split="test"))
