"""Ctrl-C: exit code 130 and one line with the command that continues."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lorank.cli import app
from lorank.interrupt import how_to_continue

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def heed_ctrl_c() -> None:
    """In the child, before its program: what a shell starts in the background ignores Ctrl-C, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heed_ctrl_c)


def signalled(process: subprocess.Popen[str], words: str, number: int) -> list[str]:
    """Send a signal when the process says these words; all lines that it has said when it is gone."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            process.send_signal(number)
    return said


def test_the_command_is_quoted_for_a_shell() -> None:
    called = ["bin/lorank", "run", "my recipe.yaml", "data={train: a}"]
    said = how_to_continue(called, ["python", *called])
    assert said == "stopped; this continues from what was saved: bin/lorank run 'my recipe.yaml' 'data={train: a}'"
    module = ["python", "-m", "lorank", "export", "a", "b c"]
    assert how_to_continue(["/src/lorank/__main__.py", *module[3:]], module) == (
        "stopped; this starts again: python -m lorank export a 'b c'"
    )


def test_what_torchrun_started_is_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    said = how_to_continue(["/src/lorank/__main__.py", "run", "r.yaml"], ["python", "-m", "lorank", "run", "r.yaml"])
    assert said == "stopped; this continues from what was saved: the same torchrun command"


def test_during_imports() -> None:
    ended = python(
        f"""
import sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            {INTERRUPT}
sys.meta_path.insert(0, Finder())
sys.argv = ["lorank", "inspect", "nothing"]
from lorank.__main__ import main
main()
"""
    )
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("stopped; this starts again: ")


@pytest.mark.parametrize("outcome", ["raise RuntimeError('a child was killed')", "raise SystemExit(1)", "raise"])
def test_whatever_a_library_makes_of_it(outcome: str) -> None:
    ended = python(
        f"""
import sys
sys.argv = ["lorank", "run", "r.yaml"]
from lorank.interrupt import explained
with explained():
    try:
        {INTERRUPT}
    except KeyboardInterrupt:
        {outcome}
"""
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.endswith("lorank run r.yaml\n")
    assert "Traceback" not in ended.stderr


def test_other_errors_are_left_alone() -> None:
    ended = python("from lorank.interrupt import explained\nwith explained():\n    raise RuntimeError('ours')")
    assert ended.returncode == 1
    assert "RuntimeError: ours" in ended.stderr


@pytest.mark.long
def test_the_command_that_is_printed_continues_the_run(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far from its end when it is stopped, however fast its steps are.
    content = tiny_recipe(method="lora", preset=None, train={"max_steps": 60}).model_dump(
        mode="json", exclude={"resolved"}
    )
    (tmp_path / "a recipe.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "lorank", "run", "a recipe.yaml", "--output", "out"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stderr=pipe, stdout=pipe, text=True, preexec_fn=heed_ctrl_c)
    said = signalled(process, "step 8/60", signal.SIGINT)
    assert process.wait() == 130
    assert said[-1].startswith("stopped; this continues from what was saved: ")
    assert not [line for line in said if "Traceback" in line]
    same = shlex.split(said[-1].partition("saved: ")[2])
    assert same == command
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(app, same[3:])  # in this process, which has imported torch already
    assert again.exit_code == 0, again.output
    assert "train, lora: continuing at step" in again.output
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_an_exception_that_python_drops_in_a_destructor_ends_the_command_all_the_same() -> None:
    ended = python(
        """
import os, signal, time
from lorank.interrupt import explained

class Dies:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

with explained():
    Dies()
    time.sleep(30)
"""
    )
    assert ended.returncode == 130
    assert "Exception ignored" not in ended.stderr
    assert ended.stderr.startswith("stopped; this ")
