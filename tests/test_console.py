"""What commands print, and where: encodings, progress bars, other packages' messages."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from tqdm import tqdm
from typer.testing import CliRunner

from lorank import console
from lorank.cli import app
from lorank.plan import RankPlan


def lorank(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own, its outputs in files as far as it can tell."""
    command = [sys.executable, "-m", "lorank", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


@pytest.mark.skipif(os.name == "nt", reason="descriptors of a child are POSIX's")
@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=["stdout", "stderr", "all"])
def test_closed_streams_are_no_error(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    ended = subprocess.run(
        [sys.executable, "-m", "lorank", "methods"], capture_output=True, check=False, preexec_fn=close
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (b"igu-lora" in ended.stdout) == (1 not in closed)
    # The numbers of the streams are for nothing that is opened later, and a child has the streams too.
    program = """
import os, subprocess, sys, types
def app():
    print(1)
    assert os.open(os.devnull, 0) > 2
    subprocess.run([sys.executable, "-c", "import os; [os.fstat(k) for k in range(3)]"], check=True)
sys.modules["lorank.cli"] = types.SimpleNamespace(app=app)
import lorank.__main__
lorank.__main__.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, preexec_fn=close)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.fixture
def plans(tmp_path: Path) -> list[Path]:
    names = [f"encoder.layer.{k}.{name}" for k in range(2) for name in ("query", "value")]
    for number, ranks in enumerate(((1, 0, 2, 1), (1, 1, 0, 2))):
        ranked = dict(zip(names, ranks, strict=True))
        RankPlan(ranked, dict.fromkeys(names, 10), "40", 40, 2.0, {}).save(tmp_path / f"{number}.json")
    return [tmp_path / "0.json", tmp_path / "1.json"]


@pytest.mark.parametrize(
    ("environment", "dot"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b"\xb7"),
        ({"PYTHONIOENCODING": "ascii"}, b"."),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"."),
    ],
    ids=["cp1252", "ascii", "C"],
)
def test_no_command_dies_of_what_the_encoding_lacks(plans: list[Path], environment: dict[str, str], dot: bytes) -> None:
    shown = lorank("plan", "diff", *plans, **environment)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"+1" in shown.stdout
    assert b" " + dot + b" |" in shown.stdout
    refused = lorank("plan", "show", "λ-Δ.json", **environment)
    assert refused.returncode == 1
    assert b"no such plan" in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_characters_that_are_lacking_are_spelled_out() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="lorank.spelled")
    stream.write("λ × ‖ΔW‖ · é \udce9")
    stream.flush()
    assert stream.buffer.getvalue() == rb"lambda x ||dW|| . \xe9 " + b"\xe9"  # type: ignore[attr-defined]


def test_help_of_every_command_is_ascii() -> None:
    names = (
        "run",
        "score",
        "allocate",
        "train",
        "prune",
        "inspect",
        "compare",
        "sweep",
        "export",
        "verify",
        "merge",
        "plan",
    )
    for arguments in ([], *([name] for name in names), *(["plan", name] for name in ("show", "diff", "export"))):
        shown = CliRunner().invoke(app, [*arguments, "--help"])
        assert shown.exit_code == 0
        assert shown.output.isascii(), arguments


def screen(written: str) -> list[str]:
    """What a terminal shows of what was written, line by line."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_lines_and_progress_bars_do_not_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with tqdm(total=4, file=stderr, ascii=True, ncols=60, mininterval=0) as bar:
        bar.update(2)
        console.progress.print("stage 1: ended")
        bar.update(2)
    lines = screen(stderr.getvalue())
    assert lines[0] == "stage 1: ended"
    assert "4/4" in lines[1]


def test_other_packages_messages_about_themselves_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    CliRunner().invoke(app, ["--version"])
    handler = logging.StreamHandler(heard := io.StringIO())
    for name, message in console._NOISE:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.error(message + ": %s", "no package kernels")
        logger.error("Something else")
        logger.removeHandler(handler)
    assert heard.getvalue() == "Something else\n" * len(console._NOISE)


def test_the_message_about_4_bit_kernels_comes_from_the_logger_that_is_filtered() -> None:
    ops = pytest.importorskip("bitsandbytes.backends.cpu.ops")
    assert ops.logger.name in [name for name, _ in console._NOISE]


def test_a_path_is_no_emoji(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "show", str(tmp_path / "a:x:b")])
    assert "a:x:b" in result.output.replace("\n", "")


def test_what_the_disk_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, said in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/else/where"), "/else/where: Permission denied"),
    ):
        with pytest.raises(typer.Exit), console.clear_errors():
            raise error
        line = capsys.readouterr().err
        assert line == f"error: {said}; what was written before is whole: mend it, and run the same command again\n"


def test_a_working_directory_that_was_removed_is_one_line(tmp_path: Path) -> None:
    (folder := tmp_path / "gone").mkdir()
    command = ["sh", "-c", f'rmdir "{folder}"; exec "{sys.executable}" -m lorank methods']
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the working directory cannot be read (No such file or directory)")
    assert len(ended.stderr.splitlines()) == 1
