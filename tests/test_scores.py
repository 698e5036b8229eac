import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lorank import ImportanceScores, LorankError
from lorank.artefact import checksum

COSTS = {"a": 3, "b": 5}


def some_scores() -> ImportanceScores:
    values = {"a": np.array([1.0, -2.0]), "b": np.array([0.25])}
    return ImportanceScores(
        values, COSTS, {k: np.abs(v) for k, v in values.items()}, {"method": "i-lora", "batches": 7}
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    scores = some_scores()
    scores.save(tmp_path / "scores.safetensors")
    loaded = ImportanceScores.load(tmp_path / "scores.safetensors")
    assert loaded.fingerprint == scores.fingerprint
    assert loaded.provenance == scores.provenance
    assert loaded.unit_costs == scores.unit_costs
    assert loaded.standard_errors is not None
    assert loaded.standard_errors["a"].tolist() == [1.0, 2.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.safetensors"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    with pytest.raises(LorankError, match="'b', unit 1"):
        ImportanceScores({"a": np.ones(2), "b": np.array([1.0, bad])}, COSTS)


@pytest.mark.parametrize(
    ("scores", "costs"),
    [
        ({}, {}),
        ({"a": np.ones(0)}, {"a": 1}),
        ({"a": np.ones(1)}, {"b": 1}),
        ({"a": np.ones((1, 1))}, {"a": 1}),
        ({"a": np.ones(1)}, {"a": 0}),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores: dict[str, np.ndarray], costs: dict[str, int]) -> None:
    with pytest.raises(LorankError):
        ImportanceScores(scores, costs)


def test_edited_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    some_scores().save(path)
    tensors = load_file(path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    save_file({**tensors, "score/a": np.array([9.0, 9.0])}, path, header)
    with pytest.raises(LorankError, match="scores were edited"):
        ImportanceScores.load(path)
    edited = {"lorank": header["lorank"].replace("i-lora", "my-lora")}
    save_file(tensors, path, edited)
    with pytest.raises(LorankError, match="header was edited"):
        ImportanceScores.load(path)
    save_file(tensors, path)
    with pytest.raises(LorankError, match="not lorank scores"):
        ImportanceScores.load(path)
    with pytest.raises(LorankError, match="no such scores file"):
        ImportanceScores.load(tmp_path / "other")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_truncated_or_damaged_files_are_refused_without_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "scores.safetensors"
    some_scores().save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        damaged = bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        damaged = bytes(content)
    path.write_bytes(damaged)
    try:
        loaded = ImportanceScores.load(path)
    except LorankError:
        return
    # Only standard errors are outside of the sums.
    assert loaded.fingerprint == some_scores().fingerprint


def module_scores(**changes) -> ImportanceScores:
    grid = np.arange(12.0).reshape(6, 2)  # columns of it are strided, as they come from a matrix of resamples
    fields = {
        "scores": {"b": grid[0, :1], "a": grid[1, :1]},
        "unit_costs": {"b": 5, "a": 3},
        "max_ranks": {"b": 2, "a": 1},
        "resamples": {
            "halves": {"b": grid[:2, 0], "a": grid[:2, 1]},
            "bootstrap": {"b": grid[2:, 0], "a": grid[2:, 1]},
        },
    }
    return ImportanceScores(**{**fields, **changes})


def test_scores_of_modules_come_back_in_order_with_their_resamples(tmp_path: Path) -> None:
    scores = module_scores()
    scores.save(tmp_path / "scores.safetensors")
    loaded = ImportanceScores.load(tmp_path / "scores.safetensors")
    assert loaded.of_modules
    assert list(loaded.scores) == ["b", "a"]
    assert loaded.max_ranks == {"b": 2, "a": 1}
    assert loaded.fingerprint == scores.fingerprint != module_scores(max_ranks={"b": 2, "a": 2}).fingerprint
    assert loaded.resamples is not None
    assert loaded.resamples["bootstrap"]["a"].tolist() == [5.0, 7.0, 9.0, 11.0]
    assert [half.scores["b"].tolist() for half in loaded.resampled("halves")] == [[0.0], [2.0]]
    assert some_scores().resampled("halves") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"b": np.ones(2), "a": np.ones(1)}}, "'b' has 2 scores and largest rank 2"),
        ({"max_ranks": {"b": 2}}, "'a' has 1 scores and largest rank None"),
        ({"resamples": {"halves": {"b": np.ones(2)}}}, "resamples 'halves' do not have the modules"),
        ({"resamples": {"halves": {"b": np.ones(2), "a": np.ones(3)}}}, "resamples 'halves' do not have the modules"),
        (
            {"resamples": {"halves": {"b": np.ones(2), "a": np.array([1, np.nan])}}},
            "resamples 'halves' are not all finite",
        ),
    ],
)
def test_scores_of_modules_that_do_not_fit_together(changes, message: str) -> None:
    with pytest.raises(LorankError, match=message):
        module_scores(**changes)


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    some_scores().save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["lorank"])
    del header["checksum"], header["max_ranks"]
    header["version"] = 1
    save_file(load_file(path), path, {"lorank": json.dumps(header | {"checksum": checksum(header)})})
    assert ImportanceScores.load(path).max_ranks is None
