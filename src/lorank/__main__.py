"""The command `lorank`, also as `python -m lorank`."""

import os
import sys

from lorank.interrupt import explained


def main() -> None:
    """Run the command line, which is loaded here: Ctrl-C is explained during its imports, too."""
    _open_closed_streams()
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(
            f"error: the working directory cannot be read ({error.strerror}): it was removed or moved; go to one that is there"
        )
    with explained():
        from lorank.cli import app

        try:
            app()
        except SystemExit as ended:
            if not ended.code and "lorank.processes" in sys.modules:
                sys.modules["lorank.processes"].leave_processes()
            raise


def _open_closed_streams() -> None:
    """Put os.devnull where a standard stream was closed (`>&-`): nothing prints into a file that is opened later."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # it gets the lowest number that is free
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    main()
