"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lorank.allocation.stability import NOISY
from lorank.module_names import places
from lorank.plan import GROUPS, RankPlan
from lorank.report.markdown import plain_table
from lorank.report.module_grid import grid_of, layer_groups, projection_groups
from lorank.report.split_table import SplitTable
from lorank.scores import ImportanceScores
from lorank.targets import Target


def rank_table(plan: RankPlan) -> SplitTable:
    """Ranks by layer and projection, as the heat map shows them; a dot is a module without adapter."""
    return _grid("rank by layer and projection", {name: str(rank or "·") for name, rank in plan.ranks.items()})


def rank_markdown(plan: RankPlan) -> str:
    """The ranks of `rank_table` as a Markdown table."""
    layers, projections, rows = grid_of({name: str(rank or "·") for name, rank in plan.ranks.items()})
    lines = [(layer, *(cell or "" for cell in row)) for layer, row in zip(layers, rows, strict=True)]
    return plain_table(("layer", *projections), lines, numbers=True).rstrip()


def summary_table(plan: RankPlan) -> SplitTable:
    """Mean rank and share of the parameters, by thirds of the layers and by projection; modules of rank 0 count."""
    table = SplitTable("mean rank", ("modules", "number", "mean rank", "% of parameters"))
    for group in (*layer_groups(plan), *projection_groups(plan)):
        table.add_row(group.name, str(group.modules), f"{group.mean_rank:.2f}", f"{100 * group.share:.1f}")
    return table


def group_table(plan: RankPlan) -> SplitTable | None:
    """What each group of modules was asked for and spends; None for a plan of one budget."""
    groups = plan.provenance.get(GROUPS)
    if not groups:
        return None
    table = SplitTable("budgets of groups", ("group", "modules", "budget", "asked for", "spent"))
    for group, one in groups.items():
        asked = f"{one['units']:,} units" if "units" in one else f"{one['parameters']:,}"
        table.add_row(group, str(one["modules"]), one["asked"], asked, f"{one['spent']:,}")
    return table


def summary_words(plan: RankPlan) -> str:
    """The mean ranks of `summary_table` in a sentence."""
    layers, projections = (
        ", ".join(f"{group.name} {group.mean_rank:.1f}" for group in groups)
        for groups in (layer_groups(plan), projection_groups(plan))
    )
    return f"Mean rank by layer: {layers or 'no layers'}; by projection: {projections}."


def _grid(title: str, cells: Mapping[str, str]) -> SplitTable:
    layers, projections, rows = grid_of(cells)
    table = SplitTable(title, ("layer", *projections))
    width = max(map(len, ("layer", *layers)))
    for layer, row in zip(layers, rows, strict=True):
        table.add_row(layer.rjust(width), *(cell or "" for cell in row))
    return table


def result_table(results: Mapping[str, Mapping[str, Any]], asked: int, units: int | None = None) -> SplitTable:
    """One row for each method: what was asked for, the parameters spent, metrics on the test part, training time.

    `asked` is in parameters, `units` what the first method was asked for where its budget counts these; a baseline with a budget
    of its own shows that.
    """
    values = {method: named_values(result) for method, result in results.items()}
    metrics = list(next(iter(values.values())))
    work = ("before training", "training of the adapter")
    table = SplitTable("test results", ("method", "asked", "spent", *metrics, *work), prose=work)
    for method, result in results.items():
        beside = f" + {result['scoring_passes']} scoring passes" if result.get("scoring_passes") else ""
        table.add_row(
            method,
            _asked(result, asked, units if method == next(iter(results)) else None),
            f"{parameters_of(result):,}",
            *(_number(values[method][m]) for m in metrics),
            _before_training(result),
            f"{result['steps']} steps{skipped_among(result)}{beside}, {result['seconds']:.0f} s",
        )
    return table


def _asked(result: Mapping[str, Any], asked: int, units: int | None) -> str:
    if "adapter_parameters" not in result:
        return "-"
    return str(result.get("budget") or (f"{asked:,}" if units is None else f"{units:,} units"))


def parameters_of(result: Mapping[str, Any]) -> int:
    """Parameters that were trained beside the head: the adapter's, or those of full fine-tuning."""
    return int(result["adapter_parameters"] if "adapter_parameters" in result else result["trained_parameters"])


def skipped_among(stage: Mapping[str, Any]) -> str:
    """How many of a stage's steps were left out as they were not finite, in words that follow their number."""
    skipped = stage.get("skipped_steps")
    return f" ({len(skipped):,} skipped)" if skipped else ""


def named_values(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Name of a metric -> value on the first test part; `part: metric` -> value on a further one."""
    found = dict(result["metrics"])
    for name, part in (result.get("more") or {}).items():
        found |= {f"{name}: {metric}": value for metric, value in part["metrics"].items()}
    return found


def _before_training(result: Mapping[str, Any]) -> str:
    if first := result.get("search") or result.get("stage1"):
        return (
            f"{first['steps']} steps{skipped_among(first)} + {first['passes']} scoring passes, {first['seconds']:.0f} s"
        )
    if seen := result.get("calibration"):
        return f"{seen['examples']} examples scored, {seen['seconds']:.1f} s"
    return "-"


def score_table(scores: ImportanceScores) -> SplitTable:
    """Share of each module in the sum of all scores, in percent, by layer and projection; units are added up."""
    total = sum(max(0.0, float(values.sum())) for values in scores.scores.values()) or 1.0
    shares = {name: max(0.0, float(values.sum())) / total for name, values in scores.scores.items()}
    title = "share of the scores in percent, by layer and projection"
    return _grid(title, {name: f"{100 * share:.1f}" for name, share in shares.items()})


def difference_table(plan: RankPlan, other: RankPlan) -> SplitTable:
    """What `other` changes in the ranks of `plan`, by layer and projection; a dot is a module whose rank stays."""
    changes = {name: other.ranks[name] - rank for name, rank in plan.ranks.items()}
    return _grid(
        "change of rank by layer and projection",
        {name: f"{change:+d}" if change else "·" for name, change in changes.items()},
    )


def change_table(plans: Sequence[RankPlan]) -> SplitTable:
    """One row for each plan of the same scores: what it spends, and what changes from the plan before."""
    numbers = ("asked for", "spent", "total rank", "largest", "without adapter", "changed modules")
    table = SplitTable("plans", ("budget", *numbers, "largest changes"))
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
    """How much of a plan other calibration examples would have moved, in words; empty where it is not known.

    Of a plan with a budget for each of several groups of modules for each group.
    """
    groups = plan.provenance.get(GROUPS) or {}
    lines = _stability(plan.provenance.get("stability", {}), len(plan.ranks))
    for group, one in groups.items():
        lines += [f"group {group}, {line}" for line in _stability(one.get("stability", {}), one["modules"])]
    return lines


def _stability(found: Mapping[str, Any], modules: int) -> list[str]:
    lines = []

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
        if draws["moved_share"] > NOISY:
            lines.append(
                "the calibration set is small for this plan: other examples would have moved more than "
                f"{100 * NOISY:.0f} % of its parameters; score on more examples (in a recipe measure.examples)"
            )
    return lines


def hessian_lines(plan: RankPlan) -> list[str]:
    """Whose Hessian the plan's scores are of; empty for scores of other methods."""
    found = plan.provenance.get("hessian_of")
    return [f"scores by the Hessian of {found}"] if found else []


def quadrature_lines(plan: RankPlan) -> list[str]:
    """How far the integrated gradients are from their integrals, in words; empty where none were made."""
    found = plan.provenance.get("quadrature") or {}
    if "richardson_estimate" not in found:  # or made by an earlier version
        return []
    estimates = [found[key] for key in ("richardson_estimate", "bound_estimate")]
    error, bound = ("not defined" if one is None or not isfinite(one) else f"{100 * one:.2g} %" for one in estimates)
    return [
        f"integrated gradients, checked with {found['intervals']} intervals on one batch: estimated error {error} (Richardson), "
        f"estimated upper bound {bound} (no guarantee)"
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def target_table(targets: tuple[Target, ...]) -> SplitTable:
    """The adaptable modules of a model, those of one kind in one row."""
    placed = places(target.name for target in targets)
    kinds: dict[tuple[str, str, int, int, int], list[int | None]] = {}
    for target in targets:
        place = placed[target.name]
        kind = (place.stack, place.projection, target.d_in, target.d_out, target.unit_cost)
        kinds.setdefault(kind, []).append(place.layer)
    columns = ("stack", "projection", "d_in", "d_out", "modules", "a unit of rank costs", "rank 1 in all")
    table = SplitTable("adaptable modules", columns, repeated=2)
    for (stack, projection, d_in, d_out, cost), layers in kinds.items():
        table.add_row(
            stack, projection, f"{d_in:,}", f"{d_out:,}", str(len(layers)), f"{cost:,}", f"{cost * len(layers):,}"
        )
    return table


def budget_table(targets: tuple[Target, ...], base_parameters: int) -> SplitTable:
    """What common budgets mean for a model."""
    uniform = sum(target.unit_cost for target in targets)
    table = SplitTable("what budgets mean here", ("budget", "same as", "adapter parameters", "of the base model"))
    for rank in (1, 2, 4, 8, 16, 32):
        parameters = rank * uniform
        table.add_row(
            f"r={rank}", f"rank={rank * len(targets)}", f"{parameters:,}", f"{100 * parameters / base_parameters:.2f}%"
        )
    return table
