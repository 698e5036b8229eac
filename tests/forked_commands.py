"""`lorank ...` in a process of its own that starts at once: it is forked from a server that has imported everything.

A fork of the process of the tests would take the threads' state of what ran there before; the server never trains.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "lorank.__main__", "lorank.runs.run", "lorank.compare.compare", "lorank.serving"]
)


def nothing() -> None:
    """What a child does before its command, unless it is told."""


class Command:
    """`lorank ARGUMENTS` as a child; `before` is called in it first (pickled: a function of a module, or `partial` of one)."""

    def __init__(self, *arguments: str | Path, before: Callable[[], object] = nothing) -> None:
        reading, writing = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(writing, [str(one) for one in arguments], before))
        self._process.start()
        writing.close()
        self._said = b""
        self._reader = threading.Thread(target=self._read, args=(reading,))
        self._reader.start()

    def _read(self, reading: Connection) -> None:
        with reading, open(reading.fileno(), "rb", closefd=False) as pipe:
            self._said = pipe.read()

    def signal(self, number: int) -> None:
        """Send it, if the child lives."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def end(self) -> int:
        """Wait for it: its exit code, minus the number of a signal that ended it."""
        self._process.join()
        self._reader.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    @property
    def text(self) -> str:
        """What it wrote to both of its outputs, after its end."""
        return self._said.decode("utf-8", "replace")

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()


def _run(said: Connection, arguments: Sequence[str], before: Callable[[], object]) -> None:
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    said.close()
    code = 99
    try:
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        warnings.resetwarnings()  # in tests those of lorank are errors
        from lorank.__main__ import main

        before()
        sys.argv = ["lorank", *arguments]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
