"""Why early `down` is missed: how much of the work each module does where all may help, and what one projection alone can do.

usage: python benchmarks/planted/stand_ins.py [--worlds 1,7] [--json FILE.json]

In a world of `one-type`, plain LoRA is trained with rank 12 in every module, and with the planted ranks. Then the adapter of one
module after the other is taken away, and the test loss rises. Beside it: the loss with equal ranks in one projection and none
elsewhere, at the budget.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bases import Bases
from rich.console import Console
from students import INITIAL, SCALE, plan_losses, train_plans, uniform_ranks
from study import numbers
from worlds import World, make_world, short

from lorank.headroom.plans import plans_by_kind
from lorank.targets import find_targets
from lorank.training.stacked_training import losses_of


def rises(world: World, ranks: dict[str, int]) -> tuple[float, dict[str, float]]:
    """Test loss after training with these ranks, and by how much it rises without each module's adapter."""
    stacked = train_plans(world, {"all": ranks}, "small", 0)
    batches = world.test.batches(256)
    whole, found = float(losses_of(stacked, batches).mean()), dict[str, float]()
    for name, b in stacked.b.items():
        kept = b.detach().clone()
        b.data.zero_()
        found[short(name)] = round(float(losses_of(stacked, batches).mean()) - whole, 4)
        b.data.copy_(kept)
    return whole, dict(sorted(found.items(), key=lambda one: -one[1]))


def measured(world: World) -> dict[str, Any]:
    """All numbers of a world."""
    everywhere, shared = rises(world, dict.fromkeys(world.costs, INITIAL))
    planted, own = rises(world, {name: rank for name, rank in world.planted.items() if rank})
    by_kind, _ = plans_by_kind(find_targets(world.base), world.budget, SCALE)
    plans = {"uniform": uniform_ranks(world)} | {
        name: dict(plan.ranks) for name, plan in by_kind.items() if name.endswith(" alone")
    }
    losses = {name: round(float(one.mean()), 4) for name, one in plan_losses(world, plans, "small", 0).items()}
    return {
        "planted": {short(name): rank for name, rank in world.planted.items() if rank},
        "loss, rank 12 everywhere": round(everywhere, 4),
        "rises without, rank 12 everywhere": shared,
        "loss, planted ranks": round(planted, 4),
        "rises without, planted ranks": own,
        "losses of plans": losses,
    }


def main() -> None:
    """Print what was measured, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="1,7")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bases, found = Bases(), dict[str, Any]()
    for number in numbers(given.worlds):
        found[f"one-type:{number}"] = measured(make_world(bases, "small", "one-type", number))
        Console(width=160).print_json(json.dumps({f"one-type:{number}": found[f"one-type:{number}"]}))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
