"""Learning rates of students, on worlds of seed 99, which no result uses: plain LoRA and triplets.

usage: python benchmarks/planted/tune.py minilm [--device cuda] [--designs random,homogeneous]
"""

import argparse

from bases import Bases
from rich.console import Console
from students import RATES, train_plans, train_triplets, uniform_ranks
from worlds import make_world

from lorank.training.stacked_training import losses_of

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)


def main() -> None:
    """One line for each rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(RATES))
    parser.add_argument("--designs", default="random,homogeneous")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    bases, console = Bases(device=given.device), Console(width=200, highlight=False)
    for design in given.designs.split(","):
        world = make_world(bases, given.kind, design, 99)
        uniform = uniform_ranks(world)
        for name, ranks in (("uniform", uniform), ("planted", dict(world.planted))):
            rates = [RATES[given.kind][0] * factor for factor in FACTORS]
            stacked = train_plans(world, {f"{rate:g}": ranks for rate in rates}, given.kind, 0, rates=rates)
            for rate, loss in zip(rates, losses_of(stacked, world.test.batches(128)).mean(1).tolist(), strict=True):
                console.print(f"{given.kind} {design}, plain LoRA, {name} ranks, {rate:.2g}: {loss:.4f}")
        for factor in FACTORS[1:4]:
            rate = RATES[given.kind][1] * factor
            loss = float(train_triplets(world, given.kind, 0, uniform, rate).mean())
            console.print(f"{given.kind} {design}, triplets, uniform ranks, {rate:.2g}: {loss:.4f}")


if __name__ == "__main__":
    main()
