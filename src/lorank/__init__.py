"""lorank: which layer gets which rank, inside an exact parameter budget.

>>> import lorank
>>> lorank.Budget.parse("0.33M").parameters({"query": 768, "up": 1920})
330000

"""

from typing import TYPE_CHECKING, Any

from lorank.errors import LorankError

if TYPE_CHECKING:
    from lorank.allocation import allocate
    from lorank.budget import Budget
    from lorank.in_training.rank_allocation import RankAllocation
    from lorank.methods.score import score
    from lorank.plan import RankPlan
    from lorank.pruning.prune import prune
    from lorank.scores import ImportanceScores

    __version__: str

__all__ = [
    "Budget",
    "ImportanceScores",
    "LorankError",
    "RankAllocation",
    "RankPlan",
    "__version__",
    "allocate",
    "prune",
    "score",
]
_HOME = {
    "allocate": "lorank.allocation",
    "prune": "lorank.pruning.prune",
    "score": "lorank.methods.score",
    "Budget": "lorank.budget",
    "RankPlan": "lorank.plan",
    "ImportanceScores": "lorank.scores",
    "RankAllocation": "lorank.in_training.rank_allocation",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `lorank --help` need not wait for torch and transformers.
    if name == "__version__":
        from importlib.metadata import version

        return version("lorank")
    if name not in _HOME:
        raise AttributeError(f"module 'lorank' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
