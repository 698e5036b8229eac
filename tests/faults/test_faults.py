"""Runs that are killed, signalled, out of disk, damaged or run twice, at random: counted, none lost, none different.

`make faults`; LORANK_FAULTS is how many kills; the other tests say how many of theirs go with it. The seed is printed.
"""

import os
import random
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.faults.worlds import (
    KILLS,
    RECIPES,
    SEED,
    World,
    finish,
    half_written,
    is_same,
    make_world,
    report,
    told,
    wait,
)
from tests.forked_commands import Command

from lorank.validation import first_difference

pytestmark = pytest.mark.faults
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def draw() -> random.Random:
    print(f"\nLORANK_FAULTS_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture(scope="module")
def worlds(tiny_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    return [make_world(method, tiny_recipe, tmp_path_factory.mktemp("worlds")) for method in RECIPES]


def test_kills(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS):
        world, out = draw.choice(worlds), tmp_path / f"killed {number}"
        for _ in range(draw.randint(1, 3)):
            command = world.run(out)
            wait(command, draw, world.seconds, out)
            command.signal(signal.SIGKILL)
            counts["killed"] += command.end() == -signal.SIGKILL
        finish(out, world, counts)
    report("kills", counts)


def test_signals(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 4):
        world, out = draw.choice(worlds), tmp_path / f"signalled {number}"
        sent, twice = draw.choice(SIGNALS), draw.random() < 0.25
        command = world.run(out)
        wait(command, draw, world.seconds, out)
        command.signal(sent)
        if twice:
            time.sleep(draw.uniform(0, 0.1))
            command.signal(sent)
        code = command.end()
        told(command, counts)
        # Before `explained` and after the last line a signal does what it does to any program; so does a second one.
        counts[{0: "had ended", 128 + sent: "continues", -sent: "ended at once"}.get(code, "lost")] += 1
        finish(out, world, counts)
    report("signals", counts)


def limit_later(after: float, size: int) -> None:
    """No file of this process may grow beyond `size` bytes, `after` some seconds."""

    def limit() -> None:
        time.sleep(after)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    threading.Thread(target=limit, daemon=True).start()


def test_full_disks(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 4):
        world, out = draw.choice(worlds), tmp_path / f"full {number}"
        after, size = draw.uniform(0, world.seconds), draw.choice([0, 100, 1_000, 4_000, 20_000])
        command = world.run(out, before=partial(limit_later, after, size))
        code = command.end()
        told(command, counts)
        counts[{0: "had ended", 1: "one line"}.get(code, f"exit code {code}")] += 1
        finish(out, world, counts)
    report("full disks", counts)


def damages(draw: random.Random) -> dict[str, Callable[[Path], object]]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes() or b"0")
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    def replace(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return {
        "half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "empty": lambda path: os.truncate(path, 0),
        "other bytes": lambda path: path.write_bytes(draw.randbytes(path.stat().st_size)),
        "a bit": flip,
        "gone": Path.unlink,
        "a folder": replace,
    }


def states(world: World, folder: Path) -> list[Path]:
    """Folders of a run: killed in the middle of each of its stages, and finished."""
    found = [world.whole]
    for stage in sorted({path.parent.name for path in world.whole.glob("*/checkpoint-*")}):
        out = folder / f"{world.method} in {stage}"
        command = world.run(out)
        for path in half_written(command, out):
            if path.parent.name == stage and path.name == "checkpoint-6":
                break
        command.signal(signal.SIGKILL)
        command.end()
        found.append(out)
    return found


def test_damaged_files(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    """Every file of every method's run in every state, each damaged once, in a way that is drawn."""
    counts, ways = Counter[str](), damages(draw)
    cases = [
        (world, state, path.relative_to(state))
        for world in worlds
        for state in states(world, tmp_path)
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.name != ".lock"
    ]
    for world, state, path in draw.sample(cases, min(len(cases), len(cases) * KILLS // 200)):
        out, way = tmp_path / "damaged", draw.choice(list(ways))
        shutil.copytree(state, out)
        ways[way](out / path)
        command = world.run(out)
        code = command.end()
        told(command, counts)
        if code == 0:
            found = "mended" if is_same(out, world.whole) else "different"
        else:
            found = "named" if path.name in command.text or path.parent.name in command.text else "not named"
        counts[found] += 1
        counts[f"{way}: {found}"] += 1
        if found in ("different", "not named"):
            print(world.method, state.name, path, way, found, command.text[-1500:])
        shutil.rmtree(out)
        # What was named is put back, and the run goes on.
        shutil.copytree(state, out)
        finish(out, world, counts)
    report(f"damaged files ({len(cases)} places)", counts)


def test_two_writers(worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    counts = Counter[str]()
    for number in range(KILLS // 8):
        world, out = draw.choice(worlds), tmp_path / f"two {number}"
        first = world.run(out)
        time.sleep(draw.uniform(0, 0.5))
        second = world.run(out)
        codes = sorted((first.end(), second.end()))
        for command in (first, second):
            told(command, counts)
        counts[{(0, 1): "one refused", (0, 0): "one after the other"}.get((codes[0], codes[1]), "lost")] += 1
        finish(out, world, counts)
    report("two writers", counts)


GRIDS = {
    "compare": ("compare", "--methods", "lora,sensitivity-lora", "--seeds", "1"),
    "headroom": ("headroom", "--plans", "2", "--seeds", "3", "--held-out", "40", "--side-by-side", "3"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_signals_to_many_runs(name: str, worlds: list[World], draw: random.Random, tmp_path: Path) -> None:
    """A comparison and a measurement of headroom are continued, whatever ended them: their numbers are the same."""
    counts = Counter[str]()
    recipe = next(world.recipe for world in worlds if world.method == "lora")

    def start(out: Path) -> Command:
        command, *options = GRIDS[name]
        return Command(command, recipe, *options, "--output", out, "--json", out.with_suffix(".json"))

    def numbers(out: Path) -> Any:
        return without_cost(yaml.safe_load(out.with_suffix(".json").read_text()))

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    assert whole.end() == 0, whole.text
    seconds = time.monotonic() - began
    for number in range(max(1, KILLS // 20 if name == "headroom" else KILLS // 40)):
        out, sent = tmp_path / f"stopped-{number}", draw.choice([*SIGNALS, signal.SIGKILL])
        command = start(out)
        time.sleep(draw.uniform(0, seconds))
        command.signal(sent)
        code = command.end()
        told(command, counts)
        counts[{0: "had ended", 128 + sent: "continues", -sent: "ended at once"}.get(code, "lost")] += 1
        command = start(out)
        code = command.end()
        other = first_difference(numbers(tmp_path / "whole"), numbers(out)) if code == 0 else None
        same = code == 0 and other is None
        counts["same" if same else "different" if code == 0 else "lost"] += 1
        if not same:
            print(name, sent, code, other, command.text[-2000:])
    report(f"{name}, stopped", counts)


COST = {"seconds", "before", "wall", "peak_bytes", "not_beaten"}


def without_cost(found: Any) -> Any:
    """Numbers of a result but for what it cost and what follows from that."""
    if isinstance(found, dict):
        return {key: without_cost(value) for key, value in found.items() if key not in COST}
    return [without_cost(one) for one in found] if isinstance(found, list) else found
