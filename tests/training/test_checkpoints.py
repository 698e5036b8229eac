"""Checkpoints: a signal ends a stage by one, damaged ones are named and left, a full disk is one line."""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lorank.artefact import checksum, write_json
from lorank.errors import LorankError, LorankWarning, OutputError
from lorank.interrupt import explained
from lorank.runs.run import run
from lorank.training.checkpoints import _sums, latest_checkpoint
from lorank.training.stage import _LogLine
from lorank.training.trainer import StageTrainer

TRAIN = {"max_steps": 8}
CUT = {
    "method": "igu-lora",
    "preset": None,
    "triplets": {"initial_rank": 3},
    "measure": {"every": 1, "estimator": "one-sample"},
    "train": TRAIN,
}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = adapter(one), adapter(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def signals_at(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int, event: str = "on_step_begin") -> None:
    """Send this process signals when a step begins."""

    def send(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(_LogLine, event, send, raising=False)


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.long) for n in ("SIGINT", "SIGHUP"))])
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_from_there(
    name: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    recipe = tiny_recipe(**CUT, checkpoint_every=100)
    usual = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["lorank", "run", "r.yaml"])
        signals_at(patch, 4, number)
        try:
            signal.signal(number, signal.SIG_DFL if name != "SIGINT" else signal.default_int_handler)
            with pytest.raises(SystemExit) as ended, explained():
                run(recipe, tmp_path / "out", Console(quiet=True))
        finally:
            signal.signal(number, usual)
    assert ended.value.code == 128 + number
    said = capfd.readouterr().err
    assert "stopping after this step; once more to stop at once" in said
    assert said.rstrip().endswith("stopped; this continues from what was saved: lorank run r.yaml")
    (stage,) = {path.parent for path in (tmp_path / "out").glob("**/stage.json")}
    assert stage.name == "checkpoint-5"
    run(recipe, tmp_path / "out", Console(quiet=True))
    if name == "SIGTERM":
        run(recipe, tmp_path / "undisturbed", Console(quiet=True))
        assert same(tmp_path / "out", tmp_path / "undisturbed")


def test_a_second_signal_ends_at_once(tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals_at(monkeypatch, 4, signal.SIGTERM, signal.SIGTERM)
    usual = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, explained():
            run(
                tiny_recipe(method="lora", preset=None, train=TRAIN, checkpoint_every=100),
                tmp_path,
                Console(quiet=True),
            )
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert ended.value.code == 143
    assert latest_checkpoint(tmp_path / "train") is None


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _other_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", _half),
        pytest.param("rank_allocation.safetensors", _other_bytes, marks=pytest.mark.long),
        pytest.param("trainer_state.json", Path.unlink, marks=pytest.mark.long),
        pytest.param("stage.json", _half, marks=pytest.mark.long),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_older_one(
    name: str, damage: Callable[[Path], None], tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe(**CUT, checkpoint_every=3)
    with pytest.MonkeyPatch.context() as patch:  # gone between its last checkpoint and what follows it
        patch.setattr("lorank.training.stage.latest_checkpoint", _gone)
        with pytest.raises(RuntimeError, match="gone"):
            run(recipe, tmp_path / "out", Console(quiet=True))
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    run(recipe, tmp_path / "whole", Console(quiet=True))
    (newest,) = (tmp_path / "out").glob("**/checkpoint-8")
    damage(newest / name)
    with pytest.warns(LorankWarning, match=f"{name}.*going on from .*checkpoint-6"):
        run(recipe, tmp_path / "out", Console(quiet=True))
    assert same(tmp_path / "out", tmp_path / "whole")


def _gone(directory: Path, *, whole: bool = False) -> Path | None:
    if not whole:
        raise RuntimeError("gone")
    return latest_checkpoint(directory, whole=True)


def test_where_no_checkpoint_is_whole_nothing_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "stage.json").write_text('{"step": 4, "files": {"optimizer.pt": {"bytes": 3, "sha256": ""}}}')
    with pytest.raises(
        OutputError, match=r"optimizer.pt is missing; no other checkpoint is whole: put .* or remove .*-4"
    ):
        latest_checkpoint(tmp_path, whole=True)
    assert (folder / "stage.json").is_file()


@pytest.mark.parametrize(
    ("step", "change", "said"),
    [
        (4, {"finished": True}, "stage.json: damaged .its checksum is another"),
        (5, {}, "stage.json: damaged .it is not of step 5"),
        (4, None, "adapter_model.bin is no file of this checkpoint"),
    ],
)
def test_another_marker_and_a_file_too_many_are_damage(step: int, change: Any, said: str, tmp_path: Path) -> None:
    folder = tmp_path / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    content = {"step": 4, "finished": False, "seconds": 1.0, "skipped": [], "files": _sums(folder)}
    write_json(folder / "stage.json", {**content, "checksum": checksum(content), **(change or {})})
    if change is None:
        (folder / "adapter_model.bin").write_text("junk")
    with pytest.raises(OutputError, match=said):
        latest_checkpoint(tmp_path, whole=True)


def test_only_what_is_named_as_a_checkpoint_is_one(tmp_path: Path) -> None:
    mine = tmp_path / "checkpoint-best"
    for folder in (mine, tmp_path / "checkpoint-3"):
        folder.mkdir()
    (tmp_path / "checkpoint-4").symlink_to(tmp_path / "gone")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (mine / "stage.json").write_text("{}")  # a copy that somebody keeps
    with pytest.warns(LorankWarning, match=r"checkpoint-4 is a link to .*gone, where no whole checkpoint is"):
        assert latest_checkpoint(tmp_path, whole=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-4",
        "checkpoint-best",
        "checkpoint-notes.txt",
    ]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk (EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(**CUT, checkpoint_every=2)
    save = StageTrainer._save_checkpoint

    def on_a_full_disk(self: StageTrainer, *args: Any, **options: Any) -> None:
        if self.state.global_step < 4:
            return save(self, *args, **options)
        with files_of_at_most(500):
            return save(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "_save_checkpoint", on_a_full_disk)
        with pytest.raises(
            OutputError, match=r"no checkpoint can be written at step 4: .*make room, and run the same command"
        ):
            run(recipe, tmp_path / "out", Console(quiet=True))
    run(recipe, tmp_path / "out", Console(quiet=True))
    assert adapter(tmp_path / "out")


def test_every_file_of_a_run_that_does_not_fit_is_an_error_of_the_family(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="lora", preset=None, train={"max_steps": 2})
    sizes = set()
    for limit in (0, 1_000, 4_000, 16_000):
        with files_of_at_most(limit), pytest.raises((LorankError, OSError)) as found:
            run(recipe, tmp_path / "out", Console(quiet=True))
        sizes.add(str(found.value))
    run(recipe, tmp_path / "out", Console(quiet=True))
    assert adapter(tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/.*.partial"))


def test_a_folder_that_vanished_ends_a_run_at_its_next_checkpoint(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def remove(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            shutil.rmtree(out)

    monkeypatch.setattr(_LogLine, "on_step_begin", remove, raising=False)
    with pytest.raises(OutputError, match=r"train was removed or renamed .* training stopped at step 6"):
        run(tiny_recipe(method="lora", preset=None, checkpoint_every=2), out, console=Console(quiet=True))
    assert not out.exists()
