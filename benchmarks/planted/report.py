"""Table and picture of the planted study.

usage: python benchmarks/planted/report.py results/planted/small.csv [more.csv] [--worlds 0-4] [--seeds 0-2]
       [--designs random,raw] [--everywhere] [--picture FILE.png]

`regret = (loss - oracle) / (uniform - oracle)`: 0 is as good as the planted ranks, 1 as good as uniform ranks, above 1 is worse
than uniform. A method is measured against uniform and planted ranks of its own kind, plain LoRA or triplets, of the same student
seeds. Losses are means over these first; numerator and denominator are then added up over worlds, so that a world with no
difference between uniform and planted ranks adds nothing but noise. Intervals (95 %) are percentiles of a bootstrap over worlds.
Of homogeneous worlds, where uniform is right, the table has the mean ratio of the loss to uniform's.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from study import numbers

from methods import TRIPLETS

Losses = Mapping[str, Mapping[str, Mapping[int, float]]]  # world -> method -> student seed -> loss


def read(paths: Sequence[Path], given: argparse.Namespace) -> Losses:
    """Losses of the worlds, student seeds and designs that are asked for."""
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        with path.open() as file:
            for row in csv.DictReader(file):
                design, number = row["world"].split(":")
                asked = ((given.worlds, int(number)), (given.seeds, int(row["seed"])), (given.designs, design))
                if all(wanted is None or one in wanted for wanted, one in asked):
                    found[row["world"]][row["method"]][int(row["seed"])] = float(row["loss"])
    return found


def with_ends(of: Mapping[str, Mapping[int, float]], method: str) -> tuple[float, float, float]:
    """Mean losses of a method, of uniform and of planted ranks of its kind, over student seeds that all three have."""
    kind = "-triplets" if method in TRIPLETS else ""
    each = (of[method], of[f"uniform{kind}"], of[f"oracle{kind}"])
    seeds = set(each[0]) & set(each[1]) & set(each[2])
    first, second, third = (float(np.mean([one[seed] for seed in seeds])) for one in each)
    return first, second, third


def regret(losses: Losses, method: str, draws: int = 4000) -> tuple[float, float, float, int, int]:
    """Regret over worlds with its interval, worlds where the method is below uniform, and worlds."""
    table = np.array([with_ends(of, method) for world, of in losses.items() if method in of and not even(world)])
    if not len(table):
        return (float("nan"),) * 3 + (0, 0)  # type: ignore[return-value]
    above, room = table[:, 0] - table[:, 2], table[:, 1] - table[:, 2]
    drawn = np.random.default_rng(0).integers(0, len(table), (draws, len(table)))
    low, high = np.quantile(above[drawn].sum(1) / room[drawn].sum(1), [0.025, 0.975])
    return float(above.sum() / room.sum()), float(low), float(high), int((table[:, 0] < table[:, 1]).sum()), len(table)


def ratio(losses: Losses, method: str) -> float:
    """Mean loss over uniform's where ranks are homogeneous; NaN where there is no such world."""
    found = [with_ends(of, method) for world, of in losses.items() if method in of and even(world)]
    return float(np.mean([own / uniform for own, uniform, _ in found])) if found else float("nan")


def even(world: str) -> bool:
    """Whether uniform ranks are the planted ones."""
    return world.startswith("homogeneous")


def in_all(losses: Losses) -> Losses:
    """Of methods that have rows of every world and student seed alone."""
    most = max(len(seeds) for of in losses.values() for seeds in of.values())
    names = {name for of in losses.values() for name in of}
    names = {name for name in names if all(len(of.get(name, ())) == most for of in losses.values())}
    return {world: {name: seeds for name, seeds in of.items() if name in names} for world, of in losses.items()}


def table(losses: Losses) -> list[str]:
    """Lines of Markdown, the best first."""
    designs = list(dict.fromkeys(world.split(":")[0] for world in losses if not even(world)))
    names = {name for of in losses.values() for name in of}
    rows = []
    for name in sorted(names, key=lambda name: (np.isnan(regret(losses, name)[0]), regret(losses, name)[0])):
        value, low, high, better, count = regret(losses, name)
        own = [regret({w: of for w, of in losses.items() if w.startswith(f"{design}:")}, name)[0] for design in designs]
        cells = [f"{value:.2f}", f"{low:.2f} to {high:.2f}", f"{better} of {count}", *(f"{one:.2f}" for one in own)]
        rows.append([name, *cells, f"{ratio(losses, name):.2f}"])
    head = ["method", "regret", "95 %", "better than uniform", *designs, "homogeneous: loss / uniform's"]
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return [lines[0], "|---" * len(head) + "|", *(line.replace("nan", "-") for line in lines[1:])]


def draw(losses: Losses, path: Path, title: str) -> None:
    """Regret of each method with its interval."""
    from matplotlib.figure import Figure

    from lorank.report.picture import save_picture

    found = {name: regret(losses, name) for name in {name for of in losses.values() for name in of}}
    names = sorted((name for name in found if found[name][4]), key=lambda name: -found[name][0])
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        value, low, high, *_ = found[name]
        color = "#b5472f" if name in TRIPLETS else "#2f5d8a"
        axes.plot([low, high], [place, place], color=color, linewidth=1.5)
        axes.plot(value, place, "o", color=color, markersize=4)
    for x, style in ((0, ":"), (1, "-")):
        axes.axvline(x, color="0.4", linestyle=style, linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.5, min(4.0, max(one[2] for one in found.values() if one[4]) + 0.1))
    axes.set_xlabel(
        "regret: 0 planted ranks, 1 uniform ranks (red: measured against triplets, blue: against plain LoRA)",
        fontsize=8,
    )
    axes.set_title(title, fontsize=9, loc="left")
    save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--worlds", type=numbers, help="0-4")
    parser.add_argument("--seeds", type=numbers, help="0-2")
    parser.add_argument("--everywhere", action="store_true", help="methods with rows of every world and seed alone")
    parser.add_argument("--designs", type=lambda text: text.split(","), help="random,one-type")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    losses = read(given.files, given)
    losses = in_all(losses) if given.everywhere else losses
    seeds = max(len(each) for of in losses.values() for each in of.values())
    uneven = [world for world in losses if not even(world)]
    counts = f"{len(uneven)} worlds with planted differences, {len(losses) - len(uneven)} homogeneous"
    said = f"{counts}, {seeds} student seeds"
    Console(width=10_000).print("\n".join([said, "", *table(losses)]), markup=False, highlight=False)
    if given.picture:
        draw(losses, given.picture, said)


if __name__ == "__main__":
    main()
