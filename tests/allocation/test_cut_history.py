"""The file of cuts: what is written line by line is what is written whole, and what is read."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lorank.allocation.cut_history import CutHistory
from lorank.errors import LorankWarning, PlanError

COSTS = {"b": 20, "a": 10}


def history(cuts: int) -> CutHistory:
    made = CutHistory({"b": 3, "a": 2}, COSTS)
    for number in range(1, cuts + 1):
        made.add(4 * number, {"a": 2 - number % 2, "b": 1}, {"a": np.array([0.1, 0.2]), "b": np.array([number / 3])})
    return made


def test_the_file_is_lines_of_json(tmp_path: Path) -> None:
    history(1).write(tmp_path / "cuts.jsonl")
    head, cut = map(json.loads, (tmp_path / "cuts.jsonl").read_text().splitlines())
    assert head == {
        "format": "lorank.cuts", "version": 1, "modules": ["b", "a"], "unit_costs": [20, 10], "ranks": [3, 2],
    }  # fmt: skip
    assert cut == {"step": 4, "ranks": [1, 1], "scores": [0.333333, 0.3]}  # sums, six digits, in the order of modules


def test_appending_gives_the_same_file_and_reading_the_same_cuts(tmp_path: Path) -> None:
    history(3).write(tmp_path / "whole.jsonl")
    history(0).write(tmp_path / "cuts.jsonl")
    for number in (1, 2, 3):
        history(number).append(tmp_path / "cuts.jsonl")
    assert (tmp_path / "cuts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    loaded = CutHistory.load(tmp_path / "cuts.jsonl")
    assert loaded.cuts == history(3).cuts
    assert (loaded.initial_ranks, loaded.unit_costs) == ({"b": 3, "a": 2}, COSTS)
    assert loaded.ranks == {"b": 1, "a": 1}
    assert history(0).ranks == {"b": 3, "a": 2}


def test_a_cut_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    with pytest.warns(LorankWarning, match="the cut of step 4 was not added"):
        history(1).append(tmp_path)


def test_a_checkpoint_drops_what_was_cut_after_it(tmp_path: Path) -> None:
    for number in (0, 2):
        later = history(3)
        later.restore(history(number).arrays())
        assert later.cuts == history(number).cuts


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    history(2).write(tmp_path / "cuts.jsonl")
    text = (tmp_path / "cuts.jsonl").read_text()
    (tmp_path / "cuts.jsonl").write_text(text[:-9])
    with pytest.warns(LorankWarning, match="last line is not whole"):
        assert CutHistory.load(tmp_path / "cuts.jsonl").cuts == history(1).cuts


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step":4', '"step":"4"'),
        ('"step":4', '"step":8'),  # twice the same
        ('"step":4', '"step":-4'),
        ('"ranks":[3,2]', '"ranks":["3",2]'),
        ('"ranks":[1,1]', '"ranks":[1.5,1]'),
        ('"scores":[0.333333', '"scores":["a"'),
        ('"scores":[0.333333', '"scores":[NaN'),
    ],
)
def test_what_is_no_number_is_refused(old: str, new: str, tmp_path: Path) -> None:
    history(2).write(tmp_path / "cuts.jsonl")
    text = (tmp_path / "cuts.jsonl").read_text()
    assert old in text
    (tmp_path / "cuts.jsonl").write_text(text.replace(old, new, 1))
    with pytest.raises(PlanError, match="damaged"):
        CutHistory.load(tmp_path / "cuts.jsonl")


@pytest.mark.parametrize("text", ["", "{}\n", '{"format":"other","version":1}\n', "[1]\n", "\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "cuts.jsonl").write_text(text)
    with pytest.raises(PlanError, match=r"no history of cuts"):
        CutHistory.load(tmp_path / "cuts.jsonl")
    with pytest.raises(PlanError, match="no such file"):
        CutHistory.load(tmp_path / "nothing.jsonl")


def test_a_cut_is_kept_in_few_bytes() -> None:
    modules = {f"layer.{number}": 8 for number in range(100)}
    kept, scores = CutHistory(modules, modules), {name: np.ones(8) for name in modules}
    kept.add(1, modules, scores)
    tracemalloc.start()
    for step in range(2, 202):
        kept.add(step, modules, scores)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1.5 * 12 * 100 * 200  # 12 bytes for a module, and what arrays take in advance
    assert kept.cuts[-1].ranks == kept.ranks == modules
