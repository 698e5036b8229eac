"""What the tests of faults share: a small run of each method, its undisturbed result, and how a disturbed one is judged."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file
from tests.forked_commands import Command

from lorank.recipe.recipe import Recipe

KILLS = int(os.environ.get("LORANK_FAULTS", "200"))
SEED = int(os.environ.get("LORANK_FAULTS_SEED", random.SystemRandom().randrange(10**6)))
_EVERY: dict[str, Any] = {"measure": {"every": 1}, "triplets": {"initial_rank": 3}}
RECIPES: dict[str, dict[str, Any]] = {
    "i-lora": {"method": "i-lora"},
    "igu-lora": {"method": "igu-lora", **_EVERY},
    "adalora": {"method": "adalora", **_EVERY},
    "sensitivity-lora": {"method": "sensitivity-lora"},
    "eva": {"method": "eva"},
    "lora": {"method": "lora"},
}


class World(NamedTuple):
    """A recipe of a method, the folder of its undisturbed run, and how long that took."""

    method: str
    recipe: Path
    whole: Path
    seconds: float

    def run(self, out: Path, **options: Any) -> Command:
        return Command("run", self.recipe, "--output", out, **options)


def make_world(method: str, tiny_recipe: Callable[..., Recipe], folder: Path) -> World:
    recipe = folder / f"{method}.yaml"
    more = {"preset": None, "checkpoint_every": 2} if method != "i-lora" else {"checkpoint_every": 2}
    content = tiny_recipe(**{**more, **RECIPES[method]}).model_dump(mode="json", exclude={"resolved"})
    recipe.write_text(yaml.safe_dump(content))
    world = World(method, recipe, folder / f"{method} whole", 0.0)
    began = time.monotonic()
    command = world.run(world.whole)
    assert command.end() == 0, command.text
    return world._replace(seconds=time.monotonic() - began)


def is_same(out: Path, whole: Path) -> bool:
    """Whether every trained adapter of a folder is that of another, bit for bit."""
    found = {path.relative_to(whole) for path in whole.rglob("adapter/adapter_model.safetensors")}
    return bool(found) and all(
        (out / path).is_file() and _same_tensors(load_file(out / path), load_file(whole / path)) for path in found
    )


def _same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def finish(out: Path, world: World, counts: Counter[str]) -> None:
    """Run it to its end; what was lost, or became another, is counted and shown."""
    command = world.run(out)
    code = command.end()
    kind = "same" if code == 0 and is_same(out, world.whole) else "different" if code == 0 else "lost"
    counts[kind] += 1
    if kind != "same":
        print(world.method, kind, command.text[-2000:])
    shutil.rmtree(out, ignore_errors=True)


def told(command: Command, counts: Counter[str]) -> None:
    """Count and show it, unless it ended in words."""
    if "Traceback" in command.text:
        counts["traceback"] += 1
        print(command.text[-3000:])


def wait(command: Command, draw: random.Random, seconds: float, out: Path) -> None:
    """Until any time of a run, or in one case of three until a checkpoint or another file is half written."""
    if draw.random() < 2 / 3:
        time.sleep(draw.uniform(0, seconds))
        return
    number = draw.randint(1, 8)
    for _ in half_written(command, out):
        number -= 1
        if not number:
            return


def half_written(command: Command, out: Path) -> Iterator[Path]:
    """Each checkpoint without its marker, and each partial file, as they come and as long as the command runs."""
    seen = set[Path]()
    while command.is_alive:
        for folder, _, files in os.walk(out):
            partial = [Path(folder, name) for name in files if name.endswith(".partial")]
            begun = "checkpoint-" in folder and "stage.json" not in files
            for path in (*partial, *([Path(folder)] if begun else [])):
                if path not in seen:
                    seen.add(path)
                    yield path
        time.sleep(0.001)


def report(kind: str, counts: Counter[str]) -> None:
    print(f"{kind}: {dict(counts)}")
    assert not counts["lost"] + counts["different"] + counts["traceback"], counts
