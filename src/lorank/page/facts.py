"""What the page says of a run in words and numbers: its plan, what was done, its results."""

from collections.abc import Mapping
from typing import Any

from lorank.page.run_folder import RunFolder
from lorank.plan import GROUPS
from lorank.report.tables import named_values, parameters_of, skipped_among


def plan_facts(run: RunFolder) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    plan = run.plan
    if plan is None:
        return []
    made = plan.provenance
    preset = f", preset {made['preset']}" if made.get("preset") else ""
    adapted = sum(rank > 0 for rank in plan.ranks.values())
    found = [
        ("method", f"{made.get('method', 'not known')}{preset}"),
        ("model", str(made.get("model") or "not known")),
        ("budget asked", f"{plan.budget} = {plan.budget_parameters:,} parameters"),
        ("spent", plan.spending),
        ("ranks", f"{plan.total_rank:,} in all, largest {max(plan.ranks.values())}"),
        ("modules", f"{adapted:,} of {len(plan.ranks):,} have an adapter"),
    ]
    if plan.budget_units is not None:
        found[2] = ("budget asked", f"{plan.budget} = {plan.budget_units:,} units of rank")
    for group, one in made.get(GROUPS, {}).items():
        found.append((f"group {group}", f"{one['asked']}, {one['spent']:,} parameters in {one['modules']:,} modules"))
    return found


def result_rows(run: RunFolder) -> dict[str, Any] | None:
    """The table of results; None where there is none."""
    results = {name: one for name, one in run.results.items() if isinstance(one, Mapping) and "metrics" in one}
    if not results:
        return None
    values = {name: named_values(one) for name, one in results.items()}
    metrics = list(dict.fromkeys(metric for of in values.values() for metric in of))
    rows = []
    for name, one in results.items():
        shown = [values[name].get(metric) for metric in metrics]
        rows.append(
            (
                name,
                f"{parameters_of(one):,}",
                ["-" if value is None else f"{value:.4f}" for value in shown],
                _steps(one),
                f"{one.get('seconds', 0):,.0f} s",
            )
        )
    return {"metrics": metrics, "rows": rows}


def _steps(result: Mapping[str, Any]) -> str:
    """Steps of the training, and the scoring passes beside them."""
    passes = result.get("scoring_passes")
    return f"{result.get('steps', 0):,}{skipped_among(result)}" + (f" + {passes:,} scoring passes" if passes else "")


def work_facts(run: RunFolder) -> list[tuple[str, str]]:
    """Examples, cost of what came before the training, processes, and where the adapter is; what was not recorded is left out."""
    metrics, made = run.metrics or {}, run.plan.provenance if run.plan is not None else {}
    counts = [(count, f"for {part}") for part, count in (metrics.get("examples") or {}).items()]
    scored = made.get("scoring_examples", made.get("examples"))
    if isinstance(scored, int) and "scoring" not in (metrics.get("examples") or {}):
        counts.append((scored, "for scoring"))
    found = [("examples", ", ".join(f"{count:,} {what}" for count, what in counts))] if counts else []
    first: Mapping[str, Any] = next(iter(run.results.values()), {})
    if work := first.get("search") or first.get("stage1"):
        steps = f"{work['steps']:,} steps{skipped_among(work)}"
        cost = f"{steps} and {work['passes']:,} scoring passes, {work['seconds']:,.1f} s"
        found.append(("cost of the search", cost))
    elif work := first.get("calibration"):
        found.append(("cost of the scores", f"{work['examples']:,} examples, {work['seconds']:,.1f} s"))
    if (count := metrics.get("processes")) is not None:
        found.append(("processes", f"{count:,}"))
    if (run.folder / "adapter" / "adapter_config.json").is_file():
        found.append(("adapter", str(run.folder / "adapter")))
    return found
