"""Budgets of pruning: all forms of `lorank.Budget`, and shares of what the adapter itself has."""

import re
from collections.abc import Sequence
from fractions import Fraction

from lorank.budget import Budget
from lorank.errors import BudgetError

HALF = "half"
_SHARE = re.compile(r"keep\s*=\s*(0?\.[0-9]+)", re.I)


def pruning_budget(budget: str | int | Budget, held: int) -> Budget:
    """Read a budget of pruning.

    `half` is half of the adapter's parameters, rounded down. `keep=50%`, also written `keep=0.5`, is half of its units of rank,
    whatever each of them costs.

    Args:
        budget: one of these, or any form of `lorank.Budget`.
        held: parameters of the adapter that is pruned.

    Raises:
        BudgetError: it cannot be read.

    """
    text = budget.strip() if isinstance(budget, str) else ""
    if text.lower() == HALF:
        return Budget.parse(held // 2)
    if share := _SHARE.fullmatch(text):
        percent = Fraction(share[1]) * 100
        return Budget.parse(f"keep={float(percent):.10g}%")
    try:
        return Budget.parse(budget)
    except BudgetError as error:
        raise BudgetError(f"{error}; for pruning also half (of the adapter's parameters) and keep=0.5") from None


def read_budgets(text: str) -> tuple[str, ...]:
    """Budgets with commas between them, each once.

    Raises:
        BudgetError: one cannot be read, or is given twice.

    """
    budgets = tuple(part.strip() for part in text.split(","))
    for budget in budgets:
        pruning_budget(budget, 10**18)
    if twice := [budget for budget in budgets if budgets.count(budget) > 1]:
        raise BudgetError(f"budget {twice[0]} is given twice; give each once")
    return budgets


def folder_names(budgets: Sequence[str]) -> dict[str, str]:
    """Budget -> name of the folder of its adapter: `2M`, `keep-50%`.

    Raises:
        BudgetError: two of them would go to the same folder.

    """
    names: dict[str, str] = {}
    for budget in budgets:
        name = re.sub(r"[^\w.%]+", "-", budget).strip("-")
        if name in names.values():
            raise BudgetError(
                f"budget {budget} would be written to the folder of another one, {name}; give one of them"
            )
        names[budget] = name
    return names
