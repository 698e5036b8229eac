"""From a file of scores to files of plans, one for each budget."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorank.allocation.budgeted import allocate
from lorank.errors import AllocationError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


def allocate_file(scores: Path, budgets: Sequence[str], output: Path, **limits: Any) -> dict[Path, RankPlan]:
    """Allocate every budget and write the plans: to `output`, or if there are several to `plan-1M.json`, `plan-2M.json`, ...

    Nothing is written unless every budget can be allocated.

    Args:
        scores: a file of `ImportanceScores`.
        budgets: see `lorank.Budget`.
        output: name of the plan.
        **limits: see `lorank.allocate`.

    Returns:
        File -> plan, in the order of the budgets.

    Raises:
        LorankError: as `lorank.allocate`, or two budgets that would go to the same file.

    """
    loaded, plans = ImportanceScores.load(scores), dict[Path, RankPlan]()
    for budget in budgets:
        plan = allocate(loaded, budget.strip(), **limits)
        name = re.sub(r"[^\w.%]+", "-", budget.strip()).strip("-")
        path = output if len(budgets) == 1 else output.with_name(f"{output.stem}-{name}{output.suffix}")
        if path in plans:
            raise AllocationError(
                f"budgets {plans[path].budget} and {budget} would both be written to {path}; give each once"
            )
        plans[path] = plan
    for path, plan in plans.items():
        plan.save(path)
    return plans
