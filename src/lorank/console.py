"""What the commands share: where they print, what they leave out, and how they fail."""

import codecs
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from typer.core import TyperGroup

from lorank.artefact import check_file, disk_problem, json_text, json_values, write_json
from lorank.errors import LorankError, LorankWarning, OutputError, as_seen

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer itself does not export it

# For outputs whose encoding lacks them.
_SPELLED = {
    **{"‖": "||", "Δ": "d", "·": ".", "×": "x", "±": "+-", "…": "...", "Σ": "sum ", "√": "sqrt ", "≤": "<=", "≥": ">="},
    **{"α": "alpha", "β": "beta", "λ": "lambda", "→": "->", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"'},
}
# Logger and start of the message: what other packages say about themselves while they are imported or called.
_NOISE = (
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),  # says how 4-bit bases could be faster
    ("torchao", "Skipping import of cpp extensions"),
    ("torch.distributed.elastic.multiprocessing.redirects", "NOTE: Redirects are currently not supported"),
    ("absl", "Using default tokenizer."),  # rouge-score, at every ROUGE
)
_FUTURE = r"(transformers|peft|trl|pyarrow|accelerate|datasets|huggingface_hub|bitsandbytes|torch)(\.|$)"


class _BesideBars(Console):
    """A console whose lines and progress bars do not end up in the same line of the terminal.

    What is printed is names and texts of files, too: nothing in them is markup, or reaches the terminal as a command.
    """

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich does, with characters that cannot be seen as Python writes them."""
        for one in super().render(renderable, options):
            yield one if one.control or one.text.isprintable() else Segment(as_seen(one.text, "\n"), one.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints; open progress bars are taken away first, and drawn again below."""
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        with tqdm.external_write_mode(file=self.file) if tqdm else nullcontext():
            super().print(*objects, **options)


# Where there is no terminal, tables keep their full width in a log, unless COLUMNS says how wide it is.
_set_width = "COLUMNS" in os.environ
out = _BesideBars(width=None if sys.stdout.isatty() or _set_width else 140, emoji=False, markup=False)
progress = _BesideBars(stderr=True, width=None if sys.stderr.isatty() or _set_width else 200, emoji=False, markup=False)


class CommandLine(TyperGroup):
    """The commands: what they print fits the output's encoding, and wrong usage is one line and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> Any:
        """Parse the arguments and run the command; ends with SystemExit."""
        for stream in (sys.stdout, sys.stderr):
            _make_writable(stream)
        _silence()
        options["standalone_mode"] = False
        try:
            code = super().main(args, *positional, **options)
        except UsageError as error:
            _explain_usage(error)
            sys.exit(2)
        except typer.Abort:
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _explain_usage(error: Any) -> None:
    message = error.format_message()
    if not message or type(error).__name__ == "NoArgsIsHelpError":  # no command at all: the list of commands
        error.show()
        return
    called = error.ctx.command_path if error.ctx is not None else "lorank"
    _print_error(f"{message.rstrip('.')}; `{called} --help` shows how it is used")


def _print_error(message: str) -> None:
    progress.print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def _make_writable(stream: Any) -> None:
    """Let a stream spell out what its encoding lacks: no command may die of a Greek letter that it prints."""
    if hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
        stream.reconfigure(errors="lorank.spelled")


def _spell(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = b""
    for character in error.object[error.start : error.end]:
        if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not in the locale's encoding
            written += bytes([ord(character) - 0xDC00])
        else:
            written += _SPELLED.get(character, character).encode("ascii", "backslashreplace")
    return written, error.end


codecs.register_error("lorank.spelled", _spell)


def _silence() -> None:
    """Leave out what is not about the user's command; errors of other packages still show."""
    # Read when they are imported. The reports about weights of a head that is new are what every classifier prints.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for logger, _ in _NOISE:
        logging.getLogger(logger).addFilter(_is_no_noise)
    warnings.filterwarnings("ignore", category=FutureWarning, module=_FUTURE)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(record.name == logger and str(record.msg).startswith(start) for logger, start in _NOISE)


@contextmanager
def clear_errors() -> Iterator[None]:
    """One line for what lorank raises on purpose, and exit code 1; one line for each of its warnings."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, LorankWarning):
            progress.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            usual(message, category, *rest, **options)

    warnings.showwarning = show
    try:
        yield
    except LorankError as error:
        _print_error(str(error))
        raise typer.Exit(1) from None
    except Exception as error:
        # Of files that no part of lorank writes or reads by itself.
        if (problem := disk_problem(error)) is None:
            raise
        name = getattr(error, "filename", None)
        said = problem if name is None else f"{name}: {problem}"
        _print_error(f"{said}; what was written before is whole: mend it, and run the same command again")
        raise typer.Exit(1) from None
    finally:
        warnings.showwarning = usual


def say(text: str) -> None:
    """Print a line as it is, however long."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def _written(path: Path) -> tuple[int, int] | None:
    """Which file stands at a path, and since when it is as it is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def document(path: Path | None, *, checked: bool = False) -> Iterator[Callable[[Any], None]]:
    """Give a function that writes what a command found as one JSON document: to this file; where it is `-`, to standard output.

    In the second case whatever else is printed meanwhile goes to standard error. Without a path nothing is written. What is no
    number (NaN, infinity) is null. `checked`: the command itself looks at the path, with whatever else it looks at.

    Raises:
        OutputError: `path` cannot be written; before the work. Or the command has written something else there meanwhile.

    """
    if path is None:
        yield lambda content: None
        return
    if path != Path("-"):
        if not checked:
            check_file(path)

        before = _written(path)

        def write(content: Any) -> None:
            if _written(path) != before:
                raise OutputError(
                    f"{path} is an output of this command already, and is as it should be; give --json another name"
                )
            write_json(path, json_values(content))
            say(f"{'numbers':<20}{path}")

        yield write
        return
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda content: print(_in_ascii_controls(json_text(json_values(content))), file=stdout)


def _in_ascii_controls(text: str) -> str:
    """JSON of the same values, whose strings cannot steer a terminal; JSON itself leaves such characters beyond ASCII."""
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
