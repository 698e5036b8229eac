"""Versions and devices, in a form that can be pasted into a bug report: no paths, no names, no values of the environment."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

# Lowest: of pyproject.toml. Newest: what `make` installs (locks/dev.txt), with which the whole test suite runs.
SUPPORTED = {
    "torch": ("2.7", "2.13.0"),
    "transformers": ("5.16.0", "5.23.0"),
    "peft": ("0.21", "0.21.2"),
    "accelerate": ("1.13", "1.15.0"),
    "datasets": ("4.7", "5.2.0"),
    "trl": ("1.16", "1.16.0"),
}
BESIDE = ("numpy", "safetensors", "pydantic", "bitsandbytes", "deepspeed")
# Set or not is what is told of these.
_MATTER = (
    *("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HOME", "OMP_NUM_THREADS"),
    *("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"),
)


@dataclass(frozen=True)
class Package:
    """An installed package beside what was tested.

    Attributes:
        name: on the package index.
        installed: its version; None where it is missing.
        lowest: that is supported; None where nothing depends on it.
        newest: that was tested; None likewise.

    """

    name: str
    installed: str | None
    lowest: str | None = None
    newest: str | None = None

    @property
    def verdict(self) -> str:
        """In words: whether this version was tested."""
        if self.installed is None:
            return "missing" if self.lowest else "not installed, and not needed"
        if self.lowest is None or self.newest is None:
            return ""
        if Version(self.installed).release < Version(self.lowest).release:
            return f"older than {self.lowest}, the lowest that is supported"
        return "newer than what was tested" if Version(self.installed).release > Version(self.newest).release else "ok"


def packages() -> list[Package]:
    """What lorank depends on, as it is installed here."""
    found = [Package(name, _installed(name), *SUPPORTED[name]) for name in SUPPORTED]
    return [Package("lorank", _installed("lorank")), *found, *(Package(name, _installed(name)) for name in BESIDE)]


def machine() -> dict[str, str]:
    """The computer: system, processor, memory of its GPUs, room on the disk of this folder, settings that matter (set or not)."""
    import torch

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["cores"] = f"{cores}, torch uses {torch.get_num_threads()}"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        found[f"GPU {number}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        found["bf16"] = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no: use fp16 or fp32"
    elif torch.backends.mps.is_available():
        found["GPU"] = "Apple (MPS)"
    else:
        found["GPU"] = "none that torch sees"
    found["disk"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:,.0f} GiB free here"
    found["set"] = ", ".join(name for name in _MATTER if name in os.environ) or "nothing that matters"
    found["started as"] = "python -m" if Path(sys.argv[0]).suffix == ".py" else "lorank"
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
