"""The planted study: every method and control on worlds whose best ranks are known. A row for each method goes to a CSV file.

usage: python benchmarks/planted/study.py small [--designs random,one-type] [--worlds 0-4] [--seeds 0-2] [--processes 2]
       (first, for minilm and smollm2: python examples/prepare_more.py downloads)

Rows are written as they come, and what is in the file already is not run again, so a study can be stopped and continued; a
method that ends with an error leaves no row, and the others go on. `report.py` reads the files.
"""

import argparse
import csv
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bases import Bases
from filelock import FileLock
from students import plan_losses, recovery
from worlds import DESIGNS, World, make_world

from methods import FROZEN, IN_TRAINING, SEARCHES, attempts, controls, frozen_plans, pruned, searched, trained

FIELDS = ("world", "seed", "method", "loss", "share", "spearman", "spent", "budget", "cpu_seconds")
ENDS = ("uniform-triplets", "oracle-triplets")
ALL = (*IN_TRAINING, *ENDS, *SEARCHES, *FROZEN, "attempts", "pruned")
# The last row that a name leaves, where that is another than its own.
MARKS = {"attempts": "agreement of two probes", "pruned": "rank 8, cut by path"}


def rows_of(
    world: World,
    kind: str,
    key: str,
    seed: int,
    wanted: Collection[str],
    known: Collection[str] = (),
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Rows of one world and seed: of controls and of the methods that are wanted, but for those that are known already.

    Many plans are trained in one pass on the device; the small encoder is too small for what is trained alone to gain there.
    """
    stacking = world.on(device)
    if kind != "small":
        world = stacking

    def row(method: str, losses: torch.Tensor, ranks: dict[str, int], seconds: float) -> dict[str, Any]:
        share, spearman = recovery(world, ranks)
        spent = sum(world.costs[name] * rank for name, rank in ranks.items())
        values = (
            key,
            seed,
            method,
            f"{float(losses.mean()):.5f}",
            f"{share:.3f}",
            f"{spearman:.3f}",
            spent,
            world.budget,
        )
        return dict(zip(FIELDS, (*values, f"{seconds:.1f}"), strict=True))

    plans = {name: dict(ranks) for name, ranks in controls(world).items() if name not in known}
    took = dict[str, float]()
    names = [name for name in wanted if MARKS.get(name, name) not in known]
    for name, losses, ranks, seconds in trained(world, kind, seed, names):
        if name == "igu official":  # it ends with a fresh adapter, which is trained as any plan
            plans[name], took[name] = ranks, seconds
            continue
        yield row(name, losses, ranks, seconds)
        if name in ("adalora paper", "igu recommended"):
            plans[f"{name}, plan retrained"], took[f"{name}, plan retrained"] = ranks, seconds
    sources = [frozen_plans(world, seed, names), searched(world, kind, seed, names)]
    if "attempts" in names:
        sources.append(attempts(stacking, kind, seed))
    for source in sources:
        for name, ranks, seconds in source:
            plans[name], took[name] = ranks, seconds
    began = time.process_time()
    found = plan_losses(stacking, plans, kind, seed)
    each = (time.process_time() - began) / max(1, len(plans))
    for name, losses in found.items():
        yield row(name, losses, plans[name], took.get(name, 0.0) + each)
    if "pruned" in names:
        for name, losses, ranks in pruned(stacking, kind, seed):
            yield row(name, losses, ranks, 0.0)


def run(
    path: Path,
    kind: str,
    one: tuple[str, int, int],
    device: str,
    wanted: Collection[str],
    known: Collection[str],
) -> float:
    """One design, world and seed, in a process of its own; rows are added to the file. Gives their seconds of processor time."""
    torch.set_num_threads(1)
    design, world, seed = one
    bases, seconds = _bases("cpu" if kind == "small" else device), 0.0
    for row in rows_of(make_world(bases, kind, design, world), kind, f"{design}:{world}", seed, wanted, known, device):
        add_row(path, row)
        seconds += float(row["cpu_seconds"])
    return seconds


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the file, which several processes write."""
    with FileLock(path.with_suffix(".lock")):
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


@cache
def _bases(device: str) -> Bases:
    return Bases(device=device)


def numbers(text: str) -> list[int]:
    """`0-4` or `0,3`."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("small", "minilm", "smollm2"))
    parser.add_argument("--designs", default=",".join(DESIGNS))
    parser.add_argument("--worlds", default="0-4")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", default=";".join(ALL), help="names, with ; between them; default: all")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    path = given.file or Path(f"results/planted/{given.kind}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open() if path.exists() else open(os.devnull) as file:
        done = defaultdict[tuple[str, int], set[str]](set)
        for row in csv.DictReader(file):
            done[row["world"], int(row["seed"])].add(row["method"])
    wanted = given.methods.split(";")
    if strange := [name for name in wanted if name not in ALL]:
        parser.error(f"{strange[0]!r} is unknown; allowed: {', '.join(ALL)}")
    left = [
        (design, world, seed)
        for seed in numbers(given.seeds)
        for world in numbers(given.worlds)
        for design in given.designs.split(",")
        if {MARKS.get(name, name) for name in wanted} - done[f"{design}:{world}", seed]
    ]
    print(f"{len(left)} worlds and seeds are left", flush=True)
    failed = 0
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(run, path, given.kind, one, given.device, wanted, done[f"{one[0]}:{one[1]}", one[2]]): one
            for one in left
        }
        for future in as_completed(waiting):
            if error := future.exception():
                failed += 1
                print(waiting[future], "".join(traceback.format_exception(error)), flush=True)
            else:
                print(waiting[future], f"{future.result():.0f} cpu s", flush=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
