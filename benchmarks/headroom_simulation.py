"""How often is the verdict of `lorank headroom` wrong, and how often does it find a gain? In simulated losses of known gains.

usage: python benchmarks/headroom_simulation.py [--draws 1000] [--json results/headroom_simulation.json]

Losses of plans x seeds x examples are drawn as `example + seed + plan + seed of the plan + example of the plan + rest`; the
verdict is asked for as the command asks for it: a look at 3, 5 and 8 seeds, and an end where the answer is clear. Sizes of the
effects are those that were measured: a planted world of the small encoder (standard deviation of plans 0.0315, of the rest
0.0037), its control with equal ranks, where most random plans hurt (0.0355, 0.0088), and the topics of R8 (0.0041, 0.0057).
"""

import argparse
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorank.artefact import write_json
from lorank.headroom.verdict import SMALLEST, headroom_at_looks

SEEDS, EXAMPLES, LOSS = 8, 400, 0.5


@dataclass(frozen=True)
class World:
    """What losses are drawn of; standard deviations, in units of the loss.

    Attributes:
        about: what it stands for.
        plan: of plans' expected losses.
        rest: what a seed gives to one plan alone, the same for all examples.
        by_example: what an example gives to one plan, the same for all seeds.
        by_all: what an example gives to one plan on one seed.
        plans: uniform ranks among them.
        worse: plans are worse than uniform ranks by the size of their effect, never better.
        better: by how much all plans are better than uniform ranks alike.
        heavy: effects of seeds have heavy tails (t with 3 degrees of freedom).

    """

    about: str
    plan: float = 0.0
    rest: float = 0.0057
    by_example: float = 0.05
    by_all: float = 0.1
    plans: int = 15
    worse: bool = False
    better: float = 0.0
    heavy: bool = False

    def draw(self, source: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Losses `(plans, seeds, examples)`, and the expected gains of the plans over uniform ranks `(plans - 1,)`."""
        count = self.plans
        effects = source.standard_normal(count) * self.plan
        effects = np.abs(effects) if self.worse else effects - self.better
        effects[0] = 0.0
        of_seed = (
            source.standard_t(3, (count, SEEDS)) / 3**0.5 if self.heavy else source.standard_normal((count, SEEDS))
        )
        losses = source.exponential(LOSS, EXAMPLES) + 0.01 * source.standard_normal(SEEDS)[:, None]
        losses = losses + (effects[:, None] + self.rest * of_seed)[..., None]
        losses = losses + self.by_example * source.standard_normal((count, 1, EXAMPLES))
        return losses + self.by_all * source.standard_normal((count, SEEDS, EXAMPLES)), -effects[1:]


# In the first group a verdict "ranks matter" is false, in the second "not more than" is, in the third there is a gain to find.
WORLDS = {
    "exchangeable": World("no plan differs; noise of R8"),
    "exchangeable, seeds alone": World("no plan differs; examples give nothing to a plan", by_example=0.0, by_all=0.0),
    "exchangeable, few plans": World("no plan differs; uniform ranks and two plans", plans=3),
    "exchangeable, examples alone": World(
        "no plan differs; the noise is that of the examples", rest=0.0, by_example=0.2
    ),
    "exchangeable, heavy tails": World("no plan differs; some seeds are far off", heavy=True),
    "most hurt, none helps": World(
        "plans differ much and are worse: F misleads here", plan=0.0355, rest=0.0088, worse=True
    ),
    "gain at the limit": World("every plan gains what just counts", better=SMALLEST * LOSS),
    "planted": World("planted `random`: plans differ, uniform ranks are one of them", plan=0.0315, rest=0.0037),
    "R8": World("plans differ less than seeds do, uniform ranks are one of them", plan=0.0041),
}
FALSE = dict.fromkeys(list(WORLDS)[:6], "ranks matter") | {"gain at the limit": "not more than"}


def simulate(world: World, draws: int, seed: int = 0) -> dict[str, Any]:
    """Shares of the verdicts, seeds that were used, and how often the bound of the best plan holds."""
    source = np.random.default_rng(seed)
    verdicts, seeds, gains, covered = Counter[str](), list[int](), list[float](), 0
    for _ in range(draws):
        losses, true = world.draw(source)
        found = headroom_at_looks(losses)
        verdicts[found.verdict] += 1
        seeds.append(found.look.seeds)
        gains.append(found.gain.mean)
        covered += bool(true.max() <= found.best)
    shares = {verdict: count / draws for verdict, count in sorted(verdicts.items())}
    return {
        "verdicts": shares,
        "mean seeds": float(np.mean(seeds)),
        "mean gain": float(np.mean(gains)),
        "best plan within its bound": covered / draws,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    content: dict[str, Any] = {"draws": options.draws, "seeds": SEEDS, "examples": EXAMPLES, "loss": LOSS, "worlds": {}}
    began = time.process_time()
    for number, (name, world) in enumerate(WORLDS.items()):
        found = simulate(world, options.draws, number)
        false = found["verdicts"].get(FALSE[name], 0.0) if name in FALSE else None
        content["worlds"][name] = {**asdict(world), **found, "false claims": false}
        print(name, {key: round(share, 4) for key, share in found["verdicts"].items()}, "false:", false, flush=True)
    content["cpu_seconds"] = time.process_time() - began
    if options.json:
        write_json(options.json, content)


if __name__ == "__main__":
    main()
