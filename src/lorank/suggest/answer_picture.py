"""The loss against the budget, with the fitted curve, and against the learning rate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorank.report.picture import drawable, drawing, save_picture
from lorank.suggest.answer import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_answer(answer: Answer, path: Path, title: str) -> None:
    """Draw an answer as a PNG or SVG.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(_figure(answer, title), path)


def _figure(answer: Answer, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _budgets(left, answer)
    _rates(right, answer)
    figure.suptitle(drawable(title), fontsize=10)
    return figure


def _budgets(axis: Any, answer: Answer) -> None:
    parameters, means = np.array(answer.parameters), np.array(answer.means)
    if answer.fitted is not None:
        grid = np.geomspace(parameters[0], 2 * parameters[-1], 100)
        drawn = np.array([curve.at(grid) for curve in answer.fitted.draws])
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        axis.fill_between(grid, low, high, alpha=0.2, label="90 % of draws of seeds and examples")
        style = "--" if answer.fitted.problem else "-"
        name = "fitted curve, not to be trusted" if answer.fitted.problem else "fitted curve"
        axis.plot(grid, answer.fitted.curve.at(grid), style, label=name)
    axis.plot(parameters, means, "o", color="black", label=f"mean of {len(answer.seeds)} seeds")
    axis.axhline(
        means[-1] + answer.allowed, color="gray", linewidth=1, linestyle=":", label=f"allowed: {answer.within}"
    )
    chosen, shown = answer.to_start_with, answer.chosen < len(means) - 1
    what = "shown to be enough" if shown else "lowest mean; none is shown to be enough"
    axis.plot(parameters[chosen], means[chosen], "o", markersize=13, fillstyle="none", color="C3", label=what)
    axis.set_xscale("log", base=2)
    axis.set_xticks(parameters, [f"r={rank}" for rank in answer.ranks])
    axis.minorticks_off()
    axis.set_xlabel("budget")
    axis.set_ylabel("loss on held-out training examples")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def _rates(axis: Any, answer: Answer) -> None:
    tried = {f"LoRA, rank {rank}": rates for rank, rates in answer.lora.items()}
    tried |= {"triplets": answer.triplets} if answer.triplets is not None else {}
    for name, rates in tried.items():
        (line,) = axis.plot(rates.rates, rates.losses, marker="o", markersize=4, label=name)
        best = rates.rates.index(rates.best)
        axis.plot(rates.best, rates.losses[best], "o", markersize=11, fillstyle="none", color=line.get_color())
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss on held-out training examples")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
