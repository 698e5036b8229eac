"""lorank: which layer gets which rank, inside an exact parameter budget.

>>> import lorank
>>> lorank.Budget.parse("0.33M").parameters({"query": 768, "up": 1920})
330000

"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorank.allocation import allocate
    from lorank.budget import Budget
    from lorank.errors import (
        AdapterError,
        AllocationError,
        BudgetError,
        ComparisonError,
        DataError,
        LorankError,
        LorankWarning,
        OutputError,
        PlanError,
        RecipeError,
        ScoresError,
        TargetError,
        TrainingError,
    )
    from lorank.findings import SeveralFindings
    from lorank.in_training.loop import AllocationLoop
    from lorank.in_training.rank_allocation import RankAllocation
    from lorank.methods.method import Method
    from lorank.methods.registry import register
    from lorank.methods.score import score
    from lorank.plan import RankPlan
    from lorank.pruning.prune import prune
    from lorank.recipe.files import load_recipe
    from lorank.recipe.recipe import Recipe
    from lorank.runs.run import run
    from lorank.scores import ImportanceScores
    from lorank.serving.export import export
    from lorank.serving.saved_adapter import check_saved_adapter
    from lorank.serving.verify import verify

    __version__: str

__all__ = [
    "AdapterError",
    "AllocationError",
    "AllocationLoop",
    "Budget",
    "BudgetError",
    "ComparisonError",
    "DataError",
    "ImportanceScores",
    "LorankError",
    "LorankWarning",
    "Method",
    "OutputError",
    "PlanError",
    "RankAllocation",
    "RankPlan",
    "Recipe",
    "RecipeError",
    "ScoresError",
    "SeveralFindings",
    "TargetError",
    "TrainingError",
    "__version__",
    "allocate",
    "check_saved_adapter",
    "export",
    "load_recipe",
    "prune",
    "register",
    "run",
    "score",
    "verify",
]
_HOME = {
    "allocate": "lorank.allocation",
    "check_saved_adapter": "lorank.serving.saved_adapter",
    "export": "lorank.serving.export",
    "load_recipe": "lorank.recipe.files",
    "prune": "lorank.pruning.prune",
    "register": "lorank.methods.registry",
    "run": "lorank.runs.run",
    "score": "lorank.methods.score",
    "verify": "lorank.serving.verify",
    "AllocationLoop": "lorank.in_training.loop",
    "Budget": "lorank.budget",
    "ImportanceScores": "lorank.scores",
    "Method": "lorank.methods.method",
    "RankAllocation": "lorank.in_training.rank_allocation",
    "RankPlan": "lorank.plan",
    "Recipe": "lorank.recipe.recipe",
    "SeveralFindings": "lorank.findings",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `lorank --help` need not wait for torch and transformers.
    if name == "__version__":
        from importlib.metadata import version

        return version("lorank")
    if name not in __all__:
        raise AttributeError(f"module 'lorank' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "lorank.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
