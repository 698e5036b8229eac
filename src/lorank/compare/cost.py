"""What a grid costs and what its seeds can show: said before it runs, and from measured times alone."""

import statistics
from collections.abc import Mapping, Sequence

from lorank.compare.cells import BASELINE, FROM_PLAN, Cell, Measured
from lorank.compare.grid import Grid
from lorank.compare.statistics import Test, least_shown
from lorank.training.steps import stage_steps

# Standard deviations of the differences between seeds: where a difference has to be larger to be shown, seeds are few.
FEW = 4.0
_ENOUGH = 2.0


def planned_steps(grid: Grid, left: Sequence[Cell], examples: Mapping[str, int]) -> int:
    """Optimizer steps of cells that are left, those that decide ranks among them, about; scoring passes are not counted.

    Args:
        grid: whose cells they are.
        left: cells.
        examples: task -> number of training examples.

    """
    of_setting: dict[tuple[str, str, str], int] = {}
    for cell in left:
        setting = (cell.task, cell.budget, cell.method)
        if setting not in of_setting:
            recipe, count = grid.recipe(cell), examples[cell.task]
            searched = recipe.has_search and cell.method not in FROM_PLAN  # these take a plan that is there
            of_setting[setting] = stage_steps(recipe.train, count)
            of_setting[setting] += stage_steps(recipe.deciding_stage, count) if searched else 0
    return sum(of_setting[cell.task, cell.budget, cell.method] for cell in left)


def time_left(grid: Grid, left: Sequence[Cell], done: Mapping[Cell, Measured], processes: int = 1) -> str:
    """How long cells will take, in words, from the mean times of cells that are done and of the same kind.

    Args:
        grid: whose cells they are, and what their kinds are.
        left: cells, those that run now among them.
        done: what has been measured.
        processes: cells at a time.

    """
    if not left:
        return "nothing left"
    times: dict[tuple[str, str, str], list[float]] = {}
    for cell, one in done.items():
        times.setdefault(grid.kind(cell), []).append(max(one.wall, one.seconds + one.before))
    known, unknown, longest = 0.0, dict[str, None](), 0.0
    for cell in left:
        if (measured := times.get(grid.kind(cell))) is None:
            task, budget, method = grid.kind(cell)
            unknown[f"{method} ({task}, {budget})"] = None
        else:
            mean = statistics.fmean(measured)
            known, longest = known + mean, max(longest, mean)
    total = max(longest, known / processes)
    if not unknown:
        return f"about {duration(total)} left"
    first, *others = unknown
    kinds = first + (f" and {len(others)} other kind{'s' * (len(others) != 1)}" if others else "")
    more = f"more than {duration(total)}; " if total else ""
    return f"time left: {more}not known yet, no cell of {kinds} is done"


def duration(seconds: float) -> str:
    """A time in two units at most: `40 s`, `12 min`, `2 h 40 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def what_seeds_can_show(grid: Grid, level: float = 0.05, test: Test = "t") -> str:
    """How large a difference has to be for this grid to show it; a warning where hardly any difference is that large.

    Args:
        grid: that is to run.
        level: of the claims.
        test: "t" or "wilcoxon".

    """
    seeds, tests = len(grid.seeds), sum(method != BASELINE for _, _, method in grid.settings())
    if tests == 0:
        return "nothing is compared with uniform LoRA"
    if seeds < 2:
        return "warning: a single seed can show nothing, since methods are compared in pairs of seeds; give --seeds 5"
    least = least_shown(seeds, level / tests, test=test)
    enough = next(count for count in range(seeds, 1001) if least_shown(count, level / tests, test=test) <= _ENOUGH)
    family = f"{seeds} seeds and {tests} comparison{'s' * (tests != 1)}"
    if test == "wilcoxon" and 2.0 ** (1 - seeds) * tests >= level:
        return (
            f"warning: with {family} nothing can be claimed: the smallest p-value of the Wilcoxon test is "
            f"{2.0 ** (1 - seeds):.3g}, after Holm's correction {min(1.0, 2.0 ** (1 - seeds) * tests):.3g}; {enough} seeds would "
            f"show differences of {_ENOUGH:g} standard deviations of the differences between seeds"
        )
    shown = (
        f"with {family} a difference is probably shown (4 times in 5) if it is at least {least:.1f} standard deviations of the "
        "differences between seeds"
    )
    if least <= FEW:
        return shown
    return f"warning: {shown}, and few are; {enough} seeds would show differences of {_ENOUGH:g} standard deviations"
