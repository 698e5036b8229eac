from pathlib import Path

import numpy as np
import pytest

from lorank.allocation.files import allocate_file
from lorank.errors import AllocationError, BudgetError, OutputError, ScoresError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scores.safetensors"
    ImportanceScores(
        {"a": np.array([1.0]), "b": np.array([3.0])}, {"a": 10, "b": 10}, None, {}, {"a": 99, "b": 99}
    ).save(path)
    return path


def test_one_budget_goes_to_the_file_that_was_named(file: Path, tmp_path: Path) -> None:
    plans = allocate_file(file, ["80"], tmp_path / "mine.json")
    assert list(plans) == [tmp_path / "mine.json"]
    assert RankPlan.load(tmp_path / "mine.json").ranks == {"a": 2, "b": 6}


def test_several_budgets_go_to_a_file_each(file: Path, tmp_path: Path) -> None:
    plans = allocate_file(file, ["0.08k", " r=8"], tmp_path / "plan.json", max_rank=12)
    assert [path.name for path in plans] == ["plan-0.08k.json", "plan-r-8.json"]
    assert RankPlan.load(tmp_path / "plan-r-8.json").ranks == {"a": 4, "b": 12}


def test_nothing_is_written_if_one_budget_cannot_be_allocated(file: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="below one unit of rank"):
        allocate_file(file, ["80", "3"], tmp_path / "plan.json")
    assert not list(tmp_path.glob("plan*"))


def test_two_budgets_for_one_file_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(AllocationError, match="would both be written"):
        allocate_file(file, ["80", "80"], tmp_path / "plan.json")


def test_a_plan_that_differs_is_not_overwritten_and_the_same_one_is_left_alone(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan-80.json"
    allocate_file(file, ["80"], path)
    written = path.stat()
    allocate_file(file, ["80"], path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    with pytest.raises(OutputError, match=r"plan-80.json is there already; .* --overwrite"):
        allocate_file(file, ["40"], path)
    with pytest.raises(OutputError, match=r"plan-80.json is there already"):
        allocate_file(file, ["60", "80"], tmp_path / "plan.json", max_rank=5)
    assert RankPlan.load(path).spent == 80
    assert not (tmp_path / "plan-60.json").exists()  # all or nothing
    allocate_file(file, ["40"], path, overwrite=True)
    assert RankPlan.load(path).spent == 40
    path.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        allocate_file(file, ["40"], path)
    with pytest.raises(OutputError, match="is a folder"):
        allocate_file(file, ["40"], tmp_path, overwrite=True)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="no such scores file"):
        allocate_file(tmp_path / "none", ["80"], tmp_path / "plan.json")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_number_above_0_is_refused(scale: float, file: Path, tmp_path: Path) -> None:
    with pytest.raises(AllocationError, match="allowed: numbers above 0"):
        allocate_file(file, ["80"], tmp_path / "plan.json", scale=scale)
    assert not (tmp_path / "plan.json").exists()
