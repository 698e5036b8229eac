"""Table and picture of the planted study.

usage: python benchmarks/planted/report.py results/planted/small.csv [more.csv] [--worlds 0-4] [--designs random,raw]
       [--picture FILE.png]

`regret = (loss - oracle) / (uniform - oracle)`: 0 is as good as the planted ranks, 1 as good as uniform ranks, above 1 is worse
than uniform. A method is measured against uniform and planted ranks of its own kind, plain LoRA or triplets. Losses are means
over student seeds first; numerator and denominator are then added up over worlds, so that a world with no difference between
uniform and planted ranks adds nothing but noise. Intervals (95 %) are percentiles of a bootstrap over worlds. Of homogeneous
worlds, where uniform is right, the table has the mean ratio of the loss to uniform's.
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

Losses = Mapping[str, Mapping[str, float]]  # world -> method -> mean loss over seeds


def read(
    paths: Sequence[Path], worlds: Sequence[int] | None = None, designs: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """World -> method -> mean loss over student seeds; and student seeds of each world."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        with path.open() as file:
            for row in csv.DictReader(file):
                design, number = row["world"].split(":")
                if (worlds is None or int(number) in worlds) and (designs is None or design in designs):
                    found[row["world"]][row["method"]].append(float(row["loss"]))
    means = {world: {name: float(np.mean(each)) for name, each in of.items()} for world, of in found.items()}
    return means, {world: max(len(each) for each in of.values()) for world, of in found.items()}


def ends(of: Mapping[str, float], method: str) -> tuple[float, float]:
    """Losses of uniform and of planted ranks, of the method's kind."""
    kind = "-triplets" if method in TRIPLETS else ""
    return of[f"uniform{kind}"], of[f"oracle{kind}"]


def regret(losses: Losses, method: str, draws: int = 4000) -> tuple[float, float, float, int, int]:
    """Regret over worlds with its interval, worlds where the method is below uniform, and worlds."""
    table = np.array(
        [(of[method], *ends(of, method)) for world, of in losses.items() if method in of and not even(world)]
    )
    if not len(table):
        return (float("nan"),) * 3 + (0, 0)  # type: ignore[return-value]
    above, room = table[:, 0] - table[:, 2], table[:, 1] - table[:, 2]
    drawn = np.random.default_rng(0).integers(0, len(table), (draws, len(table)))
    low, high = np.quantile(above[drawn].sum(1) / room[drawn].sum(1), [0.025, 0.975])
    return float(above.sum() / room.sum()), float(low), float(high), int((table[:, 0] < table[:, 1]).sum()), len(table)


def ratio(losses: Losses, method: str) -> float:
    """Mean loss over uniform's where ranks are homogeneous; NaN where there is no such world."""
    found = [of[method] / ends(of, method)[0] for world, of in losses.items() if method in of and even(world)]
    return float(np.mean(found)) if found else float("nan")


def even(world: str) -> bool:
    """Whether uniform ranks are the planted ones."""
    return world.startswith("homogeneous")


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
    parser.add_argument("--designs", type=lambda text: text.split(","), help="random,one-type")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    losses, seeds = read(given.files, given.worlds, given.designs)
    uneven = [world for world in losses if not even(world)]
    counts = f"{len(uneven)} worlds with planted differences, {len(losses) - len(uneven)} homogeneous"
    said = f"{counts}, {max(seeds.values())} student seeds"
    Console(width=10_000).print("\n".join([said, "", *table(losses)]), markup=False, highlight=False)
    if given.picture:
        draw(losses, given.picture, said)


if __name__ == "__main__":
    main()
