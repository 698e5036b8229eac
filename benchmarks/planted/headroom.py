"""`lorank headroom` where the answer is known: its plans (random, by kind) and its statistics, on planted worlds.

usage: python benchmarks/planted/headroom.py small [--designs random,one-type,homogeneous] [--worlds 0-2] [--seeds 8]
       [--device cuda] [--json FILE.json]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from bases import Bases
from rich.console import Console
from students import RATES, SCALE, train_plans
from study import numbers
from worlds import World, make_world

from lorank.headroom.plans import tried_plans
from lorank.headroom.verdict import headroom_at_looks
from lorank.targets import find_targets
from lorank.training.stacked_training import losses_of


def measured(world: World, kind: str, seeds: int) -> dict[str, Any]:
    """Verdict of a world, and what the planted ranks gain."""
    targets = find_targets(world.base)
    plans, _ = tried_plans(targets, world.budget, SCALE, random=8, seed=0)
    ranks = {name: plan.ranks for name, plan in plans.items()} | {"planted": world.planted}
    losses = list[np.ndarray]()
    for seed in range(seeds):
        stacked = train_plans(world, ranks, kind, seed)
        losses.append(losses_of(stacked, world.test.batches(64)).numpy())
    table = np.stack(losses, 1)  # (plans, seeds, examples)
    found, means = headroom_at_looks(table[:-1]), table.mean((1, 2))
    return {
        "verdict": found.verdict,
        "gain": found.gain.mean / found.uniform_loss,
        "interval": [bound / found.uniform_loss for bound in found.interval],
        "seeds": found.look.seeds,
        "plans": found.plans,
        "planted_gain": float(1 - means[-1] / means[0]),
        "best_plan_gain": float(1 - means[1:-1].min() / means[0]),
        "uniform_loss": found.uniform_loss,
        "sentence": found.sentence,
        "losses": {name: float(mean) for name, mean in zip(ranks, means, strict=True)},
    }


def main() -> None:
    """A line for each world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(RATES))
    parser.add_argument("--designs", default="random,one-type,homogeneous")
    parser.add_argument("--worlds", default="0-2")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bases, console, found = Bases(), Console(width=200, highlight=False), dict[str, Any]()
    for design in given.designs.split(","):
        for number in numbers(given.worlds):
            began = time.monotonic()
            world = make_world(bases, given.kind, design, number).on(given.device)
            one = measured(world, given.kind, given.seeds) | {"seconds": round(time.monotonic() - began, 1)}
            found[f"{design}:{number}"] = one
            console.print(
                f"{given.kind} {design}:{number}: {one['sentence']} Planted ranks gain {one['planted_gain']:.1%}."
            )
            if given.json:
                about = {"kind": given.kind, "device": given.device, "worlds": found}
                given.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
