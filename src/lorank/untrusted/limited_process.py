"""A process of its own with limits of time and memory, in which something is tried before it is used here.

Neither Python's `re` nor a template nor a tokenizer can be stopped from within, and what memory they took is only given back by
the end of a process.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lorank.errors import one_line
from lorank.untrusted.in_child import OUT_OF_MEMORY

SECONDS = 5.0  # of the processor, not of a clock: other work on the machine takes nothing of it
MEGABYTES = 500.0  # beyond what the process has when it starts; on Linux
_WAIT = 20  # times as long by a clock, whatever the processor does
_OUT_OF_TIME = -int(getattr(signal, "SIGPROF", 999))
# Its allocator or the system ended it.
_WITHOUT_MEMORY = (OUT_OF_MEMORY, *(-int(getattr(signal, name, 999)) for name in ("SIGABRT", "SIGKILL")))
_CRASHED = tuple(-int(getattr(signal, name, 999)) for name in ("SIGSEGV", "SIGBUS"))


@dataclass(frozen=True)
class Tried:
    """How a trial ended.

    Attributes:
        over: what it does beyond its limits, such as "takes longer than 5 s"; None where it ended by itself.
        number: of the input that was tried last, from 0; -1 for none.
        found: what it found out.

    """

    over: str | None
    number: int
    found: Any = None


def try_limited(
    kind: str,
    inputs: Iterable[str],
    given: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    megabytes: float = MEGABYTES,
) -> Tried:
    """Try each of the inputs in a process with limits.

    Args:
        kind: a function of `in_child`.
        inputs: each as JSON; a file holds them, so that they may be many.
        given: what is the same for all of them.
        seconds: time of the processor, without what the process needs to start.
        megabytes: memory beyond that of the process when it has started, where the system limits it (Linux).

    Raises:
        OSError: the process cannot be started.
        RuntimeError: it ended in an error of its own.

    """
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    first = {**given, "kind": kind, "path": path, "seconds": seconds, "megabytes": megabytes}
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(Path(__file__).with_name("in_child.py"))]
    calm = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        for line in chain((json.dumps(first),), inputs):
            asked.write(line.encode() + b"\n")
        asked.seek(0)
        try:
            status = subprocess.run(
                command, stdin=asked, stdout=said, stderr=errors, timeout=_WAIT * seconds, check=False, env=calm
            ).returncode
        except subprocess.TimeoutExpired:
            status = _OUT_OF_TIME
        said.seek(0)
        errors.seek(0)
        lines = said.read().split(b"\n")[:-1]
        problem = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    if status == 0:
        return Tried(None, len(lines) - 2, json.loads(lines[-1])["found"])
    if status == _OUT_OF_TIME:
        return Tried(f"takes longer than {seconds:.3g} s", len(lines) - 1)
    if status in _WITHOUT_MEMORY or problem == "MemoryError":
        return Tried(f"takes more than {megabytes:,.0f} MB of memory", len(lines) - 1)
    if status in _CRASHED:
        return Tried("crashes the process that tries it", len(lines) - 1)
    raise RuntimeError(f"a trial with limits ended with status {status}: {one_line(problem)}")
