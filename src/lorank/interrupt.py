"""Ctrl-C: one line that says how to continue. Imports little, because Ctrl-C may come while everything else is imported."""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 130
# Their output directory holds what is done, and the same command continues it; other commands write everything or nothing.
CONTINUED = ("run", "train", "compare")


@contextmanager
def explained() -> Iterator[None]:
    """After Ctrl-C, print one line in place of a traceback and exit with 130, also where a library raised an error of its own."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    # A shell script that starts a command in the background has SIGINT ignored; that stays so.
    handled = threading.current_thread() is threading.main_thread()
    handled = handled and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException as error:
        ended_well = isinstance(error, SystemExit) and error.code in (None, 0)
        if ended_well or not (pressed or isinstance(error, KeyboardInterrupt)):
            raise
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it would print a traceback on the way out
        if os.environ.get("RANK", "0") == "0":
            start = "\n" if sys.stderr.isatty() else ""  # below ^C, or below the progress bar
            print(f"{start}{how_to_continue(sys.argv, sys.orig_argv)}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
    finally:
        if handled and not pressed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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
        return f"stopped; this continues from the last checkpoint: {same}"
    return f"stopped; this starts again: {same}"
