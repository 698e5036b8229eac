"""Plans and scores from strangers: right checksums, wrong contents. Every one is read or refused in the family's words."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from lorank import ImportanceScores, RankPlan, allocate
from lorank.artefact import checksum
from lorank.cli import app
from lorank.errors import LorankError, PlanError, ScoresError
from lorank.scores import _HEADER, _digest
from tests.mutations import changed

SCORES = ImportanceScores(
    {"layer.0.q": np.array([3.0, 1.0]), "layer.1.q": np.array([2.0, 0.5])},
    {"layer.0.q": 16, "layer.1.q": 24},
    {"layer.0.q": np.array([0.1, 0.1]), "layer.1.q": np.array([0.1, 0.1])},
    {"method": "i-lora", "base_parameters": 1000, "versions": {"torch": "2"}, "choices": {"a": 1}, "experts": {}},
)


def used(path: Path) -> None:
    """What commands do with such a file, as far as it needs no model."""
    for command in (["plan", "show", str(path)], ["plan", "diff", str(path), str(path)]):
        result = CliRunner().invoke(app, command)
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exception)


def check_plans(path: Path, data: st.DataObject) -> None:
    allocate(SCORES, "64").save(path)
    content = json.loads(path.read_text())
    del content["checksum"]
    content = changed(content, data)
    try:
        text = json.dumps(content | {"checksum": checksum(content)})
    except ValueError:
        return
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        plan = RankPlan.load(path)
    except LorankError:
        return
    assert repr(plan)
    assert plan.spent <= plan.budget_parameters
    used(path)


def check_scores(path: Path, data: st.DataObject) -> None:
    tensors = {f"score/{name}": values for name, values in SCORES.scores.items()}
    header = {"format": "lorank.scores", "version": 2, "unit_costs": dict(SCORES.unit_costs), "max_ranks": None}
    header |= {"provenance": dict(SCORES.provenance), "fingerprint": SCORES.fingerprint, "tensors": _digest(tensors)}
    header = changed(header, data)
    try:
        text = json.dumps(header | {"checksum": checksum(header)})
        save_file(tensors, path, {_HEADER: text})
    except (ValueError, TypeError):
        return
    try:
        scores = ImportanceScores.load(path)
        assert repr(scores)
        allocate(scores, "r=1")
    except LorankError:
        pass


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_plans_of_strangers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_plans(tmp_path_factory.mktemp("plans") / "plan.json", data)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_scores_of_strangers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_scores(tmp_path_factory.mktemp("scores") / "scores.safetensors", data)


@pytest.mark.long
@given(st.data())
@settings(max_examples=3000, deadline=None)
def test_many_plans_of_strangers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_plans(tmp_path_factory.mktemp("plans") / "plan.json", data)


@pytest.mark.long
@given(st.data())
@settings(max_examples=3000, deadline=None)
def test_many_scores_of_strangers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_scores(tmp_path_factory.mktemp("scores") / "scores.safetensors", data)


def test_what_is_wrong_is_named_and_its_value_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    allocate(SCORES, "64").save(path)
    content = json.loads(path.read_text())
    del content["checksum"]
    content["modules"]["layer.0.q"]["rank"] = "evil " * 1000
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))
    with pytest.raises(
        PlanError, match=r"not a plan that lorank wrote: modules.layer.0.q.rank: Input should be a valid integer"
    ) as found:
        RankPlan.load(path)
    assert "evil" not in str(found.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": ' * 50_000, "null", "\ud800"])
def test_nesting_and_endless_numbers(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(PlanError):
        RankPlan.load(tmp_path / "plan.json")
    save_file({"score/a": np.zeros(1)}, tmp_path / "s.safetensors", {_HEADER: text.replace("\ud800", "?")})
    with pytest.raises(ScoresError):
        ImportanceScores.load(tmp_path / "s.safetensors")
