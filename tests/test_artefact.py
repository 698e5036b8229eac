"""Files and folders that appear whole or not at all, also when several processes write them at once or are killed."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorank.artefact import check_unwritten, new_folder, write_atomically, write_text
from lorank.errors import OutputError

# Two processes for each name: both start when both are there. Each prints which folders it won.
_RACE = """
import json, os, sys, time
from pathlib import Path
from lorank.artefact import new_folder, write_text
from lorank.errors import OutputError

me, pairs, root = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
said = {}
for pair in range(pairs):
    (root / f"ready-{pair}-{me}").touch()
    while not (root / f"ready-{pair}-{'b' if me == 'a' else 'a'}").exists():
        pass
    try:
        with new_folder(root / f"out {pair}") as folder:
            for number in range(4):
                (folder / f"{number}.txt").write_text(me)
            write_text(root / "one file", me * 1000)
        said[pair] = "won"
    except OutputError as error:
        said[pair] = str(error)
print(json.dumps(said))
"""


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_that_write_one_folder_one_wins_whole(tmp_path: Path) -> None:
    pairs = 30
    running = [_start(_RACE, name, str(pairs), str(tmp_path)) for name in ("a", "b")]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    for pair in range(pairs):
        answers = [answer[str(pair)] for answer in said]
        assert answers.count("won") == 1, answers
        assert all("\n" not in answer for answer in answers)
        winner = "a" if answers[0] == "won" else "b"
        assert {file.name: file.read_text() for file in (tmp_path / f"out {pair}").iterdir()} == {
            f"{number}.txt": winner for number in range(4)
        }
    assert (tmp_path / "one file").read_text() in ("a" * 1000, "b" * 1000)
    assert not list(tmp_path.glob(".*"))


def test_a_killed_process_leaves_no_half_folder_and_is_in_nobodys_way(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from lorank.artefact import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        assert _start(code, str(tmp_path / "out")).wait(60) < 0
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_what_another_process_wrote_in_the_meantime_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out is not written: another process has written it"):  # noqa: SIM117, PT012
        with new_folder(tmp_path / "out") as folder:
            (folder / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_empty_folder_a_link_to_one_and_a_link_to_nothing_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.symlink("elsewhere", tmp_path / "dangling")
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    for name in ("empty", "dangling", "link"):
        with new_folder(tmp_path / name) as folder:
            (folder / "file").touch()
        assert (tmp_path / name / "file").is_file()
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(OutputError, match="real is there already"), new_folder(tmp_path / "link"):
        pass


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half" if path.is_dir() else path).write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        fail(folder)
    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_it_is_the_same_or_a_user_asked(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    check_unwritten(path)
    write_text(path, "one")
    check_unwritten(path, same=True)
    check_unwritten(path, overwrite=True)
    with pytest.raises(OutputError, match=r"plan.json is there already; .* --overwrite"):
        check_unwritten(path)
    with pytest.raises(OutputError, match="is a folder"):
        check_unwritten(tmp_path, overwrite=True)


def test_modes_are_what_the_umask_says(tmp_path: Path) -> None:
    """Safetensors makes files private; one that others share is not, and a private one stays so."""
    for mask, file_mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_atomically(tmp_path / f"{mask}.safetensors", lambda path: save_file({"a": np.zeros(1)}, path))
            with new_folder(tmp_path / f"{mask}") as folder:
                save_file({"a": np.zeros(1)}, folder / "a.safetensors")
        finally:
            os.umask(before)
        for path in (tmp_path / f"{mask}.safetensors", tmp_path / f"{mask}/a.safetensors"):
            assert path.stat().st_mode & 0o777 == file_mode, path


def test_a_name_as_long_as_the_disk_allows_and_a_longer_one(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "fits")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]
    with pytest.raises(OutputError, match=r"n cannot be written: File name too long; .*give another output"):
        write_text(tmp_path / ("n" * 256), "does not")


def test_on_a_full_disk_the_old_file_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "plan.json", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # more than this is refused, as on a full disk
    try:
        for write in (lambda path: path.write_text("n" * 1000), lambda path: save_file({"a": np.zeros(1000)}, path)):
            with pytest.raises(
                OutputError, match=r"plan.json cannot be written: .*; make room, or give another output"
            ):
                write_atomically(tmp_path / "plan.json", write)
        with pytest.raises(OSError, match="too large"), new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


def test_a_problem_is_told_by_the_name_of_the_folder_that_was_given(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as found, new_folder(tmp_path / "new") as partial:
        raise OutputError(f"{partial}/README.md cannot be written: No space left on device")
    assert str(found.value) == f"{tmp_path}/new/README.md cannot be written: No space left on device"
