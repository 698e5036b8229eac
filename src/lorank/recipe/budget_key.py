"""The key `budget` of a recipe."""

from typing import Any

from lorank.budget import read_budgets
from lorank.errors import LorankError
from lorank.findings import SeveralFindings


def readable_budget(value: Any) -> str | dict[str, str]:
    """The budget as a recipe writes it, or that of each group of modules.

    Raises:
        ValueError: what cannot be read of it, in as many lines.

    """
    try:
        read = read_budgets(value)
    except LorankError as error:
        found = error.errors if isinstance(error, SeveralFindings) else (error,)
        raise ValueError("\n".join(map(str, found))) from None
    return {group: str(one) for group, one in read.items()} if isinstance(read, dict) else str(read)
