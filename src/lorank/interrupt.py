"""Ctrl-C and a scheduler's signals: a step and a checkpoint more, and one line that says how to continue.

Imports little, because Ctrl-C may come while everything else is imported.
"""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# SIGTERM is what schedulers and containers send, SIGHUP what a closed terminal sends. The last is not on Windows.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Their output directory holds what is done, and the same command continues it; other commands write everything or nothing.
CONTINUED = ("run", "train", "compare", "sweep", "headroom", "suggest")

_received: list[int] = []
_waits = False


def stop_is_asked() -> bool:
    """Whether a signal has come that `after_the_step` holds back."""
    return bool(_received)


@contextmanager
def after_the_step() -> Iterator[None]:
    """While training: the first signal is noted, for the end of the step, and does nothing else; a second one ends at once.

    Signals are noted only inside of `explained`: elsewhere they do what they do in any Python program.
    """
    global _waits
    _waits = True
    try:
        yield
    finally:
        _waits = False


@contextmanager
def explained() -> Iterator[None]:
    """After a signal, print one line in place of a traceback and exit with 128 + its number, whatever a library made of it.

    Signals are SIGINT (Ctrl-C), SIGTERM and SIGHUP: exit codes 130, 143 and 129.
    """
    _received.clear()
    process = os.getpid()

    def receive(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a child by fork, a worker of a data loader, that its parent ends in this way
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _received.append(number)
        if not _waits or len(_received) > 1:
            raise KeyboardInterrupt
        if _speaks():
            print(f"{_start()}stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    # In a destructor or a callback of the garbage collector Python drops the exception: the signal is sent again.
    ignored = sys.unraisablehook

    def dropped(what: Any) -> None:
        if not (_received and what.exc_type is KeyboardInterrupt):
            ignored(what)
            return
        again = threading.Timer(0.05, os.kill, (process, _received[0]))
        again.daemon = True
        again.start()

    sys.unraisablehook = dropped
    # A shell script that starts a command in the background has SIGINT ignored, and nohup SIGHUP; that stays so.
    main = threading.current_thread() is threading.main_thread()
    handled = {number: old for number in _SIGNALS if main and (old := signal.getsignal(number)) in usual}
    for number in handled:
        signal.signal(number, receive)
    try:
        yield
    except BaseException as error:
        ended_well = isinstance(error, SystemExit) and error.code in (None, 0)
        if ended_well or not (_received or isinstance(error, KeyboardInterrupt)):
            raise
        for number in handled:
            signal.signal(number, signal.SIG_IGN)  # sent again, it would print a traceback on the way out
        if _speaks():
            print(f"{_start()}{how_to_continue(sys.argv, sys.orig_argv)}", file=sys.stderr)
        raise SystemExit(128 + (_received[0] if _received else signal.SIGINT)) from None
    finally:
        sys.unraisablehook = ignored
        if not _received:
            for number, old in handled.items():
                signal.signal(number, old)
        _received.clear()


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _start() -> str:
    """Below ^C, or below the progress bar."""
    return "\n" if sys.stderr.isatty() else ""


def how_to_continue(arguments: list[str], whole: list[str]) -> str:
    """Say in one line with which command to continue.

    Args:
        arguments: the program as it was called and its arguments, `sys.argv`.
        whole: with the interpreter in front, `sys.orig_argv`.

    """
    command = next((argument for argument in arguments[1:] if not argument.startswith("-")), "")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        same = "the same torchrun command"
    elif os.path.basename(arguments[0]).startswith("lorank"):
        on_path = shutil.which("lorank")
        called = "lorank" if on_path and os.path.realpath(on_path) == os.path.realpath(arguments[0]) else arguments[0]
        same = shlex.join([called, *arguments[1:]])
    else:  # python -m lorank
        same = shlex.join(whole)
    if command in CONTINUED:
        return f"stopped; this continues from what was saved: {same}"
    return f"stopped; this starts again: {same}"
