"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lorank.plan import RankPlan
from lorank.report.rank_map import grid_of, rank_grid
from lorank.scores import ImportanceScores
from lorank.targets import Target, places


def rank_table(plan: RankPlan) -> Table:
    """Ranks by layer and projection, as the heat map shows them; a dot is a module without adapter."""
    grid = rank_grid(plan)
    table = Table(title="rank by layer and projection", title_justify="left")
    table.add_column("layer", justify="right", no_wrap=True)
    for projection in grid.projections:
        table.add_column(projection, justify="right")
    for layer, ranks in zip(grid.layers, grid.ranks, strict=True):
        table.add_row(layer, *("" if rank < 0 else "·" if rank == 0 else str(rank) for rank in ranks))
    return table


def result_table(results: Mapping[str, Mapping[str, Any]], asked: int) -> Table:
    """One row for each method: adapter parameters asked and spent, metrics on the test part, training time."""
    table = Table(title="test results", title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("parameters asked", justify="right")
    table.add_column("spent", justify="right")
    metrics = list(next(iter(results.values()))["metrics"])
    for metric in metrics:
        table.add_column(metric, justify="right")
    table.add_column("before training", justify="right")
    table.add_column("training of the adapter", justify="right")
    for method, result in results.items():
        beside = f" + {result['scoring_passes']} scoring passes" if result.get("scoring_passes") else ""
        table.add_row(
            method,
            f"{asked:,}",
            f"{result['adapter_parameters']:,}",
            *(_number(result["metrics"][m]) for m in metrics),
            _before_training(result),
            f"{result['steps']} steps{beside}, {result['seconds']:.0f} s",
        )
    return table


def _before_training(result: Mapping[str, Any]) -> str:
    if first := result.get("stage1"):
        return f"{first['steps']} steps + {first['passes']} scoring passes, {first['seconds']:.0f} s"
    if seen := result.get("calibration"):
        return f"{seen['examples']} examples scored, {seen['seconds']:.1f} s"
    return "-"


def score_table(scores: ImportanceScores) -> Table:
    """Share of each module in the sum of all scores, in percent, by layer and projection; units are added up."""
    total = sum(max(0.0, float(values.sum())) for values in scores.scores.values()) or 1.0
    shares = {name: max(0.0, float(values.sum())) / total for name, values in scores.scores.items()}
    layers, projections, cells = grid_of(shares)
    table = Table(title="share of the scores in percent, by layer and projection", title_justify="left")
    table.add_column("layer", justify="right", no_wrap=True)
    for projection in projections:
        table.add_column(projection, justify="right")
    for layer, row in zip(layers, cells, strict=True):
        table.add_row(layer, *("" if share is None else f"{100 * share:.1f}" for share in row))
    return table


def difference_table(plan: RankPlan, other: RankPlan) -> Table:
    """What `other` changes in the ranks of `plan`, by layer and projection; a dot is a module whose rank stays."""
    layers, projections, cells = grid_of({name: other.ranks[name] - rank for name, rank in plan.ranks.items()})
    table = Table(title="change of rank by layer and projection", title_justify="left")
    table.add_column("layer", justify="right", no_wrap=True)
    for projection in projections:
        table.add_column(projection, justify="right")
    for layer, row in zip(layers, cells, strict=True):
        table.add_row(layer, *("" if change is None else f"{change:+d}" if change else "·" for change in row))
    return table


def change_table(plans: Sequence[RankPlan]) -> Table:
    """One row for each plan of the same scores: what it spends, and what changes from the plan before."""
    table = Table(title="plans", title_justify="left")
    table.add_column("budget", no_wrap=True)
    for column in ("asked for", "spent", "total rank", "largest", "without adapter", "changed modules"):
        table.add_column(column, justify="right")
    table.add_column("largest changes")
    for number, plan in enumerate(plans):
        gained = {n: r - plans[number - 1].ranks[n] for n, r in plan.ranks.items()} if number else {}
        ends = sorted(gained, key=lambda name: gained[name])
        told = (
            [f"{name} {gained[name]:+d}" for name in dict.fromkeys((ends[-1], ends[0])) if gained[name]] if ends else []
        )
        table.add_row(
            plan.budget,
            f"{plan.budget_parameters:,}" if plan.budget_units is None else f"{plan.budget_units:,} units",
            f"{plan.spent:,}",
            str(plan.total_rank),
            str(max(plan.ranks.values())),
            str(sum(rank == 0 for rank in plan.ranks.values())),
            str(sum(change != 0 for change in gained.values())) if number else "-",
            "\n".join(told) or "-",
        )
    return table


def stability_lines(plan: RankPlan) -> list[str]:
    """How much of a plan other calibration examples would have moved, in words; empty where it is not known."""
    found, lines = plan.provenance.get("stability", {}), []
    modules = len(plan.ranks)

    def said(spearman: float | None) -> str:
        return "rank correlation " + ("not defined" if spearman is None else f"{spearman:.3f}")

    if halves := found.get("halves"):
        lines.append(
            f"stability, halves of the calibration set: {said(halves['spearman'])}, "
            f"{halves['changed_modules']} of {modules} ranks differ, {100 * halves['moved_share']:.1f} % of parameters move"
        )
    if draws := found.get("bootstrap"):
        lines.append(
            f"stability, median of {draws['draws']} bootstrap draws: {said(draws['spearman'])}, "
            f"{draws['changed_modules']} of {modules} ranks differ, {100 * draws['moved_share']:.1f} % of parameters move "
            f"({100 * draws['worst_moved_share']:.1f} % at the 95th percentile)"
        )
    return lines


def cost_table(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    """What pruning cost: parameters, losses and metrics before and after."""
    before, after = measured["before"], measured["after"]
    table = Table(title="what pruning cost", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("adapter parameters", f"{before['adapter_parameters']:,}", f"{after['adapter_parameters']:,}")
    table.add_row("loss, calibration set", _number(before["calibration_loss"]), _number(after["calibration_loss"]))
    if "loss" in before:
        table.add_row("loss, test part", _number(before["loss"]), _number(after["loss"]))
        for metric, value in before["metrics"].items():
            table.add_row(f"{metric}, test part", _number(value), _number(after["metrics"][metric]))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def target_table(targets: tuple[Target, ...]) -> Table:
    """The adaptable modules of a model, those of one kind in one row."""
    placed = places(target.name for target in targets)
    kinds: dict[tuple[str, str, int, int], list[int | None]] = {}
    for target in targets:
        place = placed[target.name]
        kinds.setdefault((place.stack, place.projection, target.d_in, target.d_out), []).append(place.layer)
    table = Table(title="adaptable modules", title_justify="left")
    table.add_column("stack", no_wrap=True)
    table.add_column("projection", no_wrap=True)
    for column in ("d_in", "d_out", "modules", "a unit of rank costs", "rank 1 in all"):
        table.add_column(column, justify="right")
    for (stack, projection, d_in, d_out), layers in kinds.items():
        cost = d_in + d_out
        table.add_row(
            stack, projection, f"{d_in:,}", f"{d_out:,}", str(len(layers)), f"{cost:,}", f"{cost * len(layers):,}"
        )
    return table


def budget_table(targets: tuple[Target, ...], base_parameters: int) -> Table:
    """What common budgets mean for a model."""
    uniform = sum(target.unit_cost for target in targets)
    table = Table(title="what budgets mean here", title_justify="left")
    for column in ("budget", "same as", "adapter parameters", "of the base model"):
        table.add_column(column, justify="right")
    for rank in (1, 2, 4, 8, 16, 32):
        parameters = rank * uniform
        table.add_row(
            f"r={rank}", f"rank={rank * len(targets)}", f"{parameters:,}", f"{100 * parameters / base_parameters:.2f}%"
        )
    return table
