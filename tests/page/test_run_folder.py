"""What is said of files that are missing or damaged: one reason for each, in the page and in the terminal."""

import json
from pathlib import Path

import pytest
from tests.page.run_cases import make_run
from typer.testing import CliRunner

from lorank.cli import app
from lorank.errors import OutputError
from lorank.page.run_folder import read_run
from lorank.training.adapter_sums import sums_of


def test_a_plan_that_is_gone_from_a_finished_run_is_written_again_by_the_same_command(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "plan.json").unlink()
    (note,) = read_run(tmp_path).notes
    assert note.startswith("plan.json is missing: ")
    assert "the same `lorank run` command writes plan.json again" in note


@pytest.mark.parametrize("name", ["plan.json", "metrics.json", "scores.safetensors"])
def test_a_damaged_file_has_one_note(name: str, tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / name).write_bytes(b"broken")
    (note,) = read_run(tmp_path).notes
    assert note.startswith(f"{name} is left out: ")


def test_a_damaged_plan_alone_is_not_called_missing_without_a_reason(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("broken")
    with pytest.raises(OutputError, match=r"that can be read; plan\.json is left out: "):
        read_run(tmp_path)


@pytest.mark.filterwarnings("default::lorank.errors.LorankWarning")
def test_the_command_says_what_the_page_says(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "plan.json").unlink()
    (tmp_path / "cuts.jsonl").write_text("{}")
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--no-figures"])
    assert result.exit_code == 0, result.output
    said = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in said] == [["warning", str(tmp_path)]] * 2
    assert "cuts.jsonl is left out" in said[0]
    assert "plan.json is missing" in said[1]


def test_the_page_that_cannot_be_written_is_the_only_thing_said(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(
        app, ["report", str(tmp_path / "mine"), "--output", str(tmp_path / "file" / "page.html")]
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "page.html cannot be written" in result.stderr


def test_an_adapter_that_is_not_what_was_measured_is_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    adapter, metrics = tmp_path / "adapter", json.loads((tmp_path / "metrics.json").read_text())
    adapter.mkdir(exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text("as it was")
    files = sums_of(adapter)
    method = next(iter(metrics["results"]))
    metrics["results"] = {method: {**metrics["results"][method], "adapter_sha256": files["adapter_model.safetensors"]}}
    metrics["results"][method]["adapter_files"] = files
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert not [note for note in read_run(tmp_path).notes if "measured" in note]
    (adapter / "adapter_config.json").write_text("another")
    said = "adapter, whose results are shown, is not what was measured: adapter_config.json is damaged or another one"
    assert [note for note in read_run(tmp_path).notes if note.startswith(said)]
