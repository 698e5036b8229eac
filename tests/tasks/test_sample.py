"""A random share of the data: which rows, in which order, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest

from lorank.compare.learning_rate import _on_training_data
from lorank.errors import DataError, LorankWarning, RecipeError
from lorank.tasks.data import content_hash, load_task_data
from lorank.tasks.sample import drawn_rows
from lorank.tasks.section import DataSection, SampleSection


def data_of(folder: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], **options: Any) -> DataSection:
    for part, rows in (("train", train), ("test", test)):
        (folder / f"{part}.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return DataSection(train=str(folder / "train.tsv"), test=str(folder / "test.tsv"), **options)


def test_a_share_of_the_rows_in_their_order(tmp_path: Path) -> None:
    train = [(f"text {k}", "good" if k % 2 else "bad") for k in range(50)]
    test = [(f"other {k}", "good" if k % 2 else "bad") for k in range(10)]
    section = data_of(tmp_path, train, test, sample={"train": 0.2, "seed": 3})
    data = load_task_data(section)
    # The rule, written a second time.
    order = list(range(50))
    random.Random("3/sample of the data").shuffle(order)
    wanted = sorted(order[:10])
    assert data.train["text_1"][:] == [train[k][0] for k in wanted]
    assert data.train["labels"][:] == [k % 2 for k in wanted]
    assert (data.drawn["train"].rows, data.drawn["train"].of) == (tuple(wanted), 50)
    assert (len(data.test), list(data.drawn)) == (10, ["train"])
    # Checksums are of what is used: a row that is not drawn changes nothing, one that is does.
    assert data.hashes["train"] == content_hash(data.train)
    unused = next(k for k in range(50) if k not in wanted)
    for changed, same in ((unused, True), (wanted[0], False)):
        rows = [("changed", label) if k == changed else (text, label) for k, (text, label) in enumerate(train)]
        other = load_task_data(data_of(tmp_path, rows, test, sample={"train": 0.2, "seed": 3}))
        assert (other.hashes == data.hashes) is same


def test_the_rows_follow_from_the_seed_of_the_data() -> None:
    def rows(share: float, seed: int) -> set[int]:
        drawn = drawn_rows(SampleSection(train=share, seed=seed), "train", 1000)
        assert drawn is not None
        return set(drawn.rows)

    assert len(rows(0.2, 0)) == 200
    assert rows(0.2, 0) == rows(0.2, 0)
    assert rows(0.1, 0) < rows(0.2, 0)
    assert 20 < len(rows(0.2, 0) & rows(0.2, 1)) < 60  # 40 are expected of two that are independent
    assert min(rows(0.2, 0)) < 50 < 950 < max(rows(0.2, 0))  # from the whole part, not from its first fifth
    assert drawn_rows(SampleSection(train=0.2), "train", 204_045).of == 204_045  # type: ignore[union-attr]
    assert len(drawn_rows(SampleSection(train=0.2), "train", 204_045).rows) == 40_809  # type: ignore[union-attr]
    assert drawn_rows(SampleSection(train=0.2), "test", 10) is None
    assert drawn_rows(None, "train", 10) is None


def test_every_row_is_as_likely() -> None:
    counts = [0] * 20
    for seed in range(400):
        drawn = drawn_rows(SampleSection(test=0.25, seed=seed), "test", 20)
        assert drawn is not None
        for row in drawn.rows:
            counts[row] += 1
    assert sum(counts) == 400 * 5
    assert max(abs(count - 100) for count in counts) < 40  # 4.6 standard deviations


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_shares_that_are_none(share: float, tiny_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"data\.sample\.train: Input should be"):
        tiny_recipe(data={"sample": {"train": share}})


def test_shares_that_leave_too_little(tmp_path: Path) -> None:
    train = [("fine", "good"), ("dull", "bad")] * 10 + [("so so", "mixed")]
    test = [("warm", "good"), ("cold", "bad")]
    with pytest.raises(DataError, match=r"data\.sample\.test: 0\.2 of the 2 rows of test leaves none; raise it"):
        load_task_data(data_of(tmp_path, train, test, sample={"test": 0.2}))
    with pytest.raises(DataError, match=r"data\.sample\.train leaves the single class '(good|bad|mixed)' to train on"):
        load_task_data(data_of(tmp_path, train, test, sample={"train": 0.05}))
    seed = next(
        seed
        for seed in range(50)
        if 20 not in drawn_rows(SampleSection(train=0.5, seed=seed), "train", 21).rows  # type: ignore[union-attr]
    )
    with pytest.warns(
        LorankWarning, match="leaves 1 of 3 classes without a training example: mixed; the head keeps them"
    ):
        data = load_task_data(data_of(tmp_path, train, test, sample={"train": 0.5, "seed": seed}))
    assert data.label_names == ("bad", "good", "mixed")
    numbers = [("fine", "1"), ("dull", "2"), ("cold", "2")]
    with pytest.raises(DataError, match="correlation needs at least two different labels"):
        load_task_data(data_of(tmp_path, numbers, numbers, task="regression", sample={"test": 0.3}))


def test_rows_that_are_not_drawn_are_checked_too(tmp_path: Path) -> None:
    train = [("fine", "good"), ("dull", "bad")] * 10
    for place in (3, 17):
        rows = [(text, "" if k == place else label) for k, (text, label) in enumerate(train)]
        with pytest.raises(DataError, match=rf"train example {place} has ''.*line {place + 2}"):
            load_task_data(data_of(tmp_path, rows, train, sample={"train": 0.2}))


def test_the_search_of_learning_rates_sees_the_same_rows(tmp_path: Path, tiny_folder: Path) -> None:
    lines = [f'{{"document": "text {k}", "summary": "word {k}"}}\n' for k in range(40)]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    files = {"train": str(tmp_path / "all.jsonl"), "test": str(tmp_path / "all.jsonl")}
    data = {**files, "task": "summarization", "sample": {"train": 0.5, "seed": 1}}
    content = {"model": str(tiny_folder), "method": "lora", "budget": "r=1", "data": data}
    found = _on_training_data("task", content, tmp_path, 0.2, None)
    searched = found["data"]
    assert found["metrics"] == ["rouge1"]  # the first, which is judged by
    drawn = drawn_rows(SampleSection(train=0.5, seed=1), "train", 40)
    assert drawn is not None
    written = [
        line for part in ("train", "test") for line in Path(searched[part]).read_text().splitlines(keepends=True)
    ]
    assert sorted(written) == sorted(lines[row] for row in drawn.rows)
    assert "sample" not in searched
    # Files are named by their content: a search of other rows is another search.
    content["data"] = {**data, "sample": {"train": 0.4, "seed": 1}}
    other = _on_training_data("task", content, tmp_path, 0.2, None)["data"]
    assert not {searched["train"], searched["test"]} & {other["train"], other["test"]}
    assert all(Path(path).is_file() for path in (searched["train"], other["train"]))
