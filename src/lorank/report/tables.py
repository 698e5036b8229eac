"""Tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from lorank.plan import RankPlan
from lorank.report.rank_map import rank_grid
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
    table.add_column("stage 1", justify="right")
    table.add_column("training of the adapter", justify="right")
    for method, result in results.items():
        first = result.get("stage1")
        beside = f" + {result['scoring_passes']} scoring passes" if result.get("scoring_passes") else ""
        table.add_row(
            method,
            f"{asked:,}",
            f"{result['adapter_parameters']:,}",
            *("-" if result["metrics"][m] is None else f"{result['metrics'][m]:.4f}" for m in metrics),
            f"{first['steps']} steps + {first['passes']} scoring passes, {first['seconds']:.0f} s" if first else "-",
            f"{result['steps']} steps{beside}, {result['seconds']:.0f} s",
        )
    return table


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
