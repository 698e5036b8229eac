"""Runs that are killed, signalled, out of disk, damaged or run twice, at random: counted, none lost, none different.

`make faults`; LORANK_FAULTS is how many kills, a fourth of it how many of each other kind. The seed is printed.

Children are forked from this process, which has imported everything and never trained: so a run takes a second or two.
"""

import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

import lorank.runs.run  # noqa: F401 (imported before the fork)
from lorank.__main__ import main

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("LORANK_FAULTS", "200"))
SEED = int(os.environ.get("LORANK_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
EVERY: dict[str, Any] = {"measure": {"every": 1}, "triplets": {"initial_rank": 3}}
RECIPES: dict[str, dict[str, Any]] = {
    "i-lora": {"method": "i-lora"},
    "igu-lora": {"method": "igu-lora", **EVERY},
    "adalora": {"method": "adalora", **EVERY},
    "sensitivity-lora": {"method": "sensitivity-lora"},
    "eva": {"method": "eva"},
    "lora": {"method": "lora"},
}


class Child:
    """`lorank run RECIPE --output OUT` in a fork of this process; `before` is called in it first."""

    def __init__(self, recipe: Path, out: Path, before: Callable[[], object] = lambda: None) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            code = 99
            try:
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
                warnings.resetwarnings()  # in tests those of lorank are errors
                before()
                sys.argv = ["lorank", "run", str(recipe), "--output", str(out)]
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
        os.close(writing)
        self.said = b""
        self._reader = threading.Thread(target=self._read, args=(reading,))
        self._reader.start()

    def _read(self, reading: int) -> None:
        with open(reading, "rb") as pipe:
            self.said = pipe.read()

    def end(self) -> int:
        """Its exit code, minus the number of a signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        self._reader.join()
        return os.waitstatus_to_exitcode(status)

    @property
    def text(self) -> str:
        return self.said.decode("utf-8", "replace")


class World(NamedTuple):
    """A recipe of a method, the folder of its undisturbed run, and how long that took."""

    method: str
    recipe: Path
    whole: Path
    seconds: float


@pytest.fixture(scope="module")
def draw() -> random.Random:
    print(f"\nLORANK_FAULTS_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture
def worlds(tiny_recipe: Any, tmp_path: Path) -> list[World]:
    found = []
    for method, changes in RECIPES.items():
        recipe = tmp_path / f"{method}.yaml"
        more = {"preset": None, "checkpoint_every": 2} if method != "i-lora" else {"checkpoint_every": 2}
        content = tiny_recipe(**{**more, **changes}).model_dump(mode="json", exclude={"resolved"})
        recipe.write_text(yaml.safe_dump(content))
        began = time.monotonic()
        child = Child(recipe, tmp_path / f"{method} whole")
        assert child.end() == 0, child.text
        found.append(World(method, recipe, tmp_path / f"{method} whole", time.monotonic() - began))
    return found


def is_same(out: Path, world: World) -> bool:
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (out, world.whole))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def finish(out: Path, world: World, counts: Counter[str]) -> None:
    """Run it to its end; what was lost, or became another, is counted and shown."""
    child = Child(world.recipe, out)
    code = child.end()
    kind = "same" if code == 0 and is_same(out, world) else "different" if code == 0 else "lost"
    counts[kind] += 1
    if kind != "same":
        print(world.method, kind, child.text[-2000:])
    shutil.rmtree(out, ignore_errors=True)


def told(child: Child, counts: Counter[str]) -> None:
    """Whether it ended in words."""
    if "Traceback" in child.text:
        counts["traceback"] += 1
        print(child.text[-3000:])


def report(kind: str, counts: Counter[str]) -> None:
    print(f"{kind}: {dict(counts)}")
    assert not counts["lost"] + counts["different"] + counts["traceback"], counts


def test_kills(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS):
        world, out = draw.choice(worlds), tmp_path / f"killed {number}"
        for _ in range(draw.randint(1, 3)):
            child = Child(world.recipe, out)
            time.sleep(draw.uniform(0, world.seconds))
            os.kill(child.pid, signal.SIGKILL)
            counts["killed"] += child.end() == -signal.SIGKILL
        finish(out, world, counts)
    report("kills", counts)


def test_signals(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 4):
        world, out = draw.choice(worlds), tmp_path / f"signalled {number}"
        sent = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        child = Child(world.recipe, out)
        time.sleep(draw.uniform(0.1, world.seconds))
        os.kill(child.pid, sent)
        code = child.end()
        told(child, counts)
        # Before `explained` and after the last line a signal does what it does to any program.
        counts[{0: "had ended", 128 + sent: "continues", -sent: "before the command"}.get(code, "lost")] += 1
        finish(out, world, counts)
    report("signals", counts)


def test_full_disks(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 4):
        world, out = draw.choice(worlds), tmp_path / f"full {number}"
        after, size = draw.uniform(0, world.seconds), draw.choice([0, 100, 1_000, 4_000, 20_000])

        def fill(after: float = after, size: int = size) -> None:
            def limit() -> None:
                time.sleep(after)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

            threading.Thread(target=limit, daemon=True).start()

        child = Child(world.recipe, out, fill)
        code = child.end()
        told(child, counts)
        counts[{0: "had ended", 1: "one line"}.get(code, f"exit code {code}")] += 1
        finish(out, world, counts)
    report("full disks", counts)


def test_damaged_files(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    damages: dict[str, Callable[[Path], object]] = {
        "half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "empty": lambda path: os.truncate(path, 0),
        "other bytes": lambda path: path.write_bytes(draw.randbytes(path.stat().st_size)),
        "gone": Path.unlink,
    }
    counts = Counter[str]()
    for number in range(KILLS // 4):
        world, out, kept = draw.choice(worlds), tmp_path / f"damaged {number}", tmp_path / f"kept {number}"
        child = Child(world.recipe, out)
        time.sleep(draw.uniform(0.4, 1) * world.seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.end()
        files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
        if files:
            path, damage = draw.choice(files), draw.choice(list(damages))
            shutil.copytree(out, kept)
            damages[damage](path)
            child = Child(world.recipe, out)
            code = child.end()
            told(child, counts)
            if code == 0:
                same = is_same(out, world)
                counts["mended" if same else "different"] += 1
                if not same:
                    print(world.method, "different", path.relative_to(out), damage, child.text[-1500:])
            else:
                named = path.name in child.text or path.parent.name in child.text
                counts["named" if named else "not named"] += 1
                if not named:
                    print(world.method, path.relative_to(out), damage, child.text[-500:])
            shutil.rmtree(out)
            kept.rename(out)
        finish(out, world, counts)
    report("damaged files", counts)


def test_two_writers(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 8):
        world, out = draw.choice(worlds), tmp_path / f"two {number}"
        first = Child(world.recipe, out)
        time.sleep(draw.uniform(0, 0.5))
        second = Child(world.recipe, out)
        codes = sorted((first.end(), second.end()))
        for child in (first, second):
            told(child, counts)
        counts[{(0, 1): "one refused", (0, 0): "one after the other"}.get((codes[0], codes[1]), "lost")] += 1
        finish(out, world, counts)
    report("two writers", counts)
