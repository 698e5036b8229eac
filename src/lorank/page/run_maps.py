"""Which maps the page shows of a run, and of the differences between runs."""

from collections.abc import Mapping, Sequence
from math import isfinite

from lorank.errors import PlanError
from lorank.page.budget_plans import plans_of_budgets
from lorank.page.maps import PageMap, importance_map, rank_map
from lorank.page.run_folder import RunFolder
from lorank.plan import RankPlan
from lorank.report.rank_map import module_importance
from lorank.scores import ImportanceScores

_MOST_CUTS = 60  # of more, evenly chosen ones are shown


def maps_of(run: RunFolder, key: str) -> list[PageMap]:
    """Ranks, importance, ranks after each cut, and ranks at other budgets, as far as there is what they need."""
    plan, found = run.plan, list[PageMap]()
    if plan is not None:
        found.append(
            rank_map(
                f"{key}ranks",
                [("", plan.ranks)],
                plan.unit_costs,
                title="Ranks",
                reading="A stronger colour is more rank; a dot is a module without adapter. Sums at the right and below.",
            )
        )
    if plan is not None and run.scores is not None:
        importance = dict[str, float]()
        try:
            importance = module_importance(plan, run.scores)
        except PlanError:
            run.notes.append("The scores beside the plan are of other modules or another plan: they are not shown.")
        else:
            if not all(map(isfinite, importance.values())):
                run.notes.append("The scores are too large to be added up: importance is not shown.")
                importance = {}
        if importance:
            title = "Importance"
            reading = "Share of a module in all importance, in percent: the sum of the scores of its units."
            if min(importance.values()) < 0:
                reading += (
                    " Below zero: added up, the units of the module made the loss that was scored larger; a single unit of "
                    "it can still score high enough to be kept."
                )
            errors = _errors(plan, run.scores)
            found.append(importance_map(f"{key}importance", plan, importance, errors, title=title, reading=reading))
    if run.history is not None and run.history.cuts:
        cuts = run.history.cuts
        if len(cuts) > _MOST_CUTS:
            cuts = [cuts[round(k * (len(cuts) - 1) / (_MOST_CUTS - 1))] for k in range(_MOST_CUTS)]
        states: list[tuple[str, Mapping[str, int]]] = [("before the first cut", run.history.initial_ranks)]
        states += [(f"after the cut at step {cut.step:,}", cut.ranks) for cut in cuts]
        found.append(
            rank_map(
                f"{key}cuts",
                [(f"{label}: total rank {sum(ranks.values()):,}", ranks) for label, ranks in states],
                run.history.unit_costs,
                title="Ranks over the cuts",
                reading="What each cut left. Move the slider.",
                slider="cut",
                start=len(states) - 1,
            )
        )
    if plan is not None and run.scores is not None and len(plans := plans_of_budgets(plan, run.scores)) > 1:
        nearest = min(range(len(plans)), key=lambda number: abs(plans[number].spent - plan.spent))
        moved = 100 * plan.moved_share(plans[nearest])
        said = (
            f" That of the run's own budget puts {moved:.1f} % of the parameters elsewhere than the run's plan."
            if moved
            else ""
        )
        found.append(
            rank_map(
                f"{key}budgets",
                [(f"{one.spent:,} parameters, total rank {one.total_rank:,}", one.ranks) for one in plans],
                plan.unit_costs,
                title="Ranks at other budgets",
                reading="Plans of the same scores; lorank allocate writes any of them." + said,
                slider="budget",
                start=nearest,
            )
        )
    return found


def difference_maps(runs: Sequence[RunFolder]) -> list[PageMap]:
    """What the plan of each further run has more or less than that of the first, where both are of one model."""
    first = runs[0].plan
    found = []
    for number, run in enumerate(runs[1:], 1):
        if first is None or run.plan is None or set(run.plan.ranks) != set(first.ranks):
            continue
        changes = {name: rank - first.ranks[name] for name, rank in run.plan.ranks.items()}
        moved = 100 * first.moved_share(run.plan)
        found.append(
            rank_map(
                f"d{number}",
                [("", changes)],
                first.unit_costs,
                title=f"{run.name} against {runs[0].name}",
                reading=f"Change of each rank; a dot is none. {moved:.1f} % of the parameters of {runs[0].name} moved.",
            )
        )
    return found


def _errors(plan: RankPlan, scores: ImportanceScores) -> dict[str, float]:
    """Standard errors of `module_importance`, in percent of all; those of a module's units are taken as independent."""
    if scores.standard_errors is None:
        return {}
    total = sum(abs(float(scores.scores[name].sum())) for name in plan.ranks)
    squares = {name: float((errors**2).sum()) for name, errors in scores.standard_errors.items()}
    return {name: 100 * square**0.5 / total for name, square in squares.items()} if total else {}
