"""How a cell is run: in a process of its own, with its share of the cores and of the GPUs."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue

import torch

# Runs the cell in a folder and gives its exit code.
Launch = Callable[[Path], int]
_RUNNING: set[subprocess.Popen[bytes]] = set()


def on_this_machine(processes: int) -> Launch:
    """A launcher for `processes` cells at a time on this machine, on different GPUs as far as there are."""
    gpus = visible_gpus()
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(processes):
        free.put(slot)

    def launch(folder: Path) -> int:
        slot = free.get()
        try:
            gpu = gpus[slot % len(gpus)] if gpus else None
            return in_process(folder, environment_of(cores_of(processes), gpu))
        finally:
            free.put(slot)

    return launch


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [one.strip() for one in asked.split(",")] if asked else [str(k) for k in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def cores_of(processes: int) -> int:
    """The share of this machine's cores that each of so many cells gets."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // processes)


def in_process(folder: Path, environment: Mapping[str, str], working: Path | None = None) -> int:
    """Run the cell of a folder in a process of its own (in the folder `working`), its output in log.txt; gives its exit code."""
    command = [sys.executable, "-m", "lorank.compare.run_cell", str(folder)]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=working)
        _RUNNING.add(process)
        try:
            return process.wait()
        finally:
            _RUNNING.discard(process)


def stop_cells() -> None:
    """End the cells that run now; the next call of their grid continues them from their last checkpoints."""
    for process in tuple(_RUNNING):
        process.terminate()


def environment_of(cores: int, gpu: str | None = None) -> dict[str, str]:
    """The environment of a cell: that of this process, its threads, unless OMP_NUM_THREADS says how many, and its GPU."""
    own = {"OMP_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    return own if gpu is None else {**own, "CUDA_VISIBLE_DEVICES": gpu}
