"""The result for the terminal: a table of plans, and what it means in plain words."""

import numpy as np

from lorank.headroom.measure import Measured
from lorank.report.split_table import SplitTable


def plan_table(measured: Measured) -> SplitTable:
    """A row for each plan, lowest loss first."""
    means, names = measured.losses.mean(2), list(measured.plans)
    gains = means[0] - means
    table = SplitTable(
        "plans at the same budget, judged on held-out training examples",
        ("plan", "loss", "gain over uniform", "± over seeds", "times chosen"),
    )
    for number in np.argsort(means.mean(1), kind="stable").tolist():
        uniform = number == 0
        table.add_row(
            names[number],
            f"{means[number].mean():.4f}",
            "" if uniform else f"{gains[number].mean():+.4f}",
            "" if uniform else f"{gains[number].std(ddof=1):.4f}",
            "" if uniform else str(measured.chosen.get(names[number], 0)),
        )
    return table


def report_lines(measured: Measured) -> list[str]:
    """What was found, a sentence a line; the verdict first."""
    headroom = measured.headroom
    spread, (low, high) = headroom.spread, headroom.interval
    sure = 1 - 2 * headroom.look.level
    lines = [
        headroom.sentence,
        f"Interval {low:+.4f} to {high:+.4f} at {sure:.1%} confidence, from {headroom.look.seeds} seeds and {headroom.examples} "
        "examples; the plan was chosen on one seed and one half of the examples, and measured on other seeds and the other half.",
        f"Spread of the loss (standard deviations): {spread.plans:.4f} by plan, {spread.seeds:.4f} by seed, {spread.rest:.4f} "
        "the rest. Plans also differ where they are only worse than uniform ranks.",
        f"If the best of these plans were known, it would gain not more than {max(0.0, headroom.best):.4f}: a bound that is wide "
        "where seeds are few.",
        f"All of this is of {measured.steps:,} steps: other lengths of training may say otherwise.",
    ]
    lines += [f"Left out: {name}: {why}." for name, why in measured.left_out.items()]
    return lines
