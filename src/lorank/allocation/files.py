"""From a file of scores to files of plans, one for each budget."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorank.allocation.budgeted import allocate
from lorank.artefact import check_unwritten
from lorank.errors import AllocationError, BudgetError, PlanError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


def allocate_file(
    scores: Path, budgets: Sequence[str | Mapping[str, str]], output: Path, *, overwrite: bool = False, **limits: Any
) -> dict[Path, RankPlan]:
    """Allocate every budget and write the plans: to `output`, or if there are several to `plan-1M.json`, `plan-2M.json`, ...

    Nothing is written unless every budget can be allocated and every file can be written. The same plan again changes no file.

    Args:
        scores: a file of `ImportanceScores`.
        budgets: see `lorank.Budget`; or one of each group of modules, see `lorank.allocate`.
        output: name of the plan.
        overwrite: replace other plans (and other files) of that name.
        **limits: see `lorank.allocate`.

    Returns:
        File -> plan, in the order of the budgets.

    Raises:
        OutputError: a file of that name is there already and holds something else.
        LorankError: as `lorank.allocate`, or two budgets that would go to the same file.

    """
    loaded, plans = ImportanceScores.load(scores), dict[Path, RankPlan]()
    for budget in budgets:
        plan = allocate(loaded, budget, **limits)
        name = re.sub(r"[^\w.%]+", "-", plan.budget).strip("-")
        path = output if len(budgets) == 1 else output.with_name(f"{output.stem}-{name}{output.suffix}")
        if path in plans:
            raise AllocationError(
                f"budgets {plans[path].budget} and {plan.budget} would both be written to {path}; give each once"
            )
        plans[path] = plan
    same = {path: _holds(path, plan) for path, plan in plans.items()}
    for path in plans:
        check_unwritten(path, same=same[path], overwrite=overwrite)
    for path, plan in plans.items():
        if not same[path]:
            plan.save(path)
    return plans


def asked_budgets(budget: str | None, groups: Sequence[str]) -> list[str | Mapping[str, str]]:
    """The budgets of a command line: several with commas between them, or one of each group, `vision_model=r=2`.

    Raises:
        BudgetError: neither, or both; a group without a budget, or one that is given twice.

    """
    if (budget is None) == (not groups):
        both = "--budget and --group are both given" if groups else "no budget is given"
        raise BudgetError(f"{both}; give --budget for all modules, or --group NAME=BUDGET for each group of them")
    if budget is not None:
        return list(budget.split(","))
    found: dict[str, str] = {}
    for one in groups:
        name, equals, own = one.partition("=")
        if not equals or name in found:
            what = "is given twice" if name in found else "has no budget"
            raise BudgetError(f"--group {one!r}: group {name!r} {what}; write each once, as --group vision_model=r=2")
        found[name] = own
    return [found]


def _holds(path: Path, plan: RankPlan) -> bool:
    """Whether a file is this plan already."""
    try:
        return path.is_file() and RankPlan.load(path) == plan
    except PlanError:
        return False
