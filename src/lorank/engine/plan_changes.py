"""How much the plan still changes: from one window of scoring batches to the next, and within the scores' standard errors."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorank.allocation.stability import NOISY
from lorank.engine.cut_rules import CutRules
from lorank.engine.options import StopWhenStable
from lorank.errors import LorankWarning
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

_DRAWS = 20


class PlanChanges:
    """Says when `rule.windows` windows in a row each moved less than `rule.share` of the plan's parameters."""

    def __init__(self, rule: StopWhenStable | None) -> None:
        self.rule = rule
        self.ranks: dict[str, int] | None = None
        self.moved_shares: list[float] = []

    def is_due(self, measured: int) -> bool:
        """Whether a window ends with this scored mini-batch, counted from 1."""
        return self.rule is not None and measured % self.rule.window == 0

    def compare(self, plan: RankPlan) -> None:
        """Take in the cut that would be made at the end of this window."""
        if self.ranks is not None:
            # Of a budget that counts units the plan of the window before may have spent more parameters.
            spent = sum(rank * plan.unit_costs[name] for name, rank in self.ranks.items())
            before = RankPlan(self.ranks, plan.unit_costs, plan.budget, max(spent, plan.budget_parameters))
            self.moved_shares.append(plan.moved_share(before))
        self.ranks = dict(plan.ranks)

    def scalars(self) -> dict[str, float]:
        """What is logged: the share of the parameters that moved since the window before."""
        return {"rank_allocation/moved_share": self.moved_shares[-1]} if self.moved_shares else {}

    @property
    def stable(self) -> bool:
        """Whether the last windows moved little enough."""
        if self.rule is None:
            return False
        last = self.moved_shares[-self.rule.windows :]
        return len(last) == self.rule.windows and max(last) < self.rule.share

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"ranks": self.ranks, "moved_shares": self.moved_shares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.ranks, self.moved_shares = state["ranks"], list(state["moved_shares"])


def warn_of_noise(scores: ImportanceScores, rules: CutRules) -> dict[str, float]:
    """How much of the plan the scores' standard errors would move, as JSON values for its provenance.

    Scores are drawn anew from normal distributions of their standard errors, independently, by a fixed seed; counted is the
    median share of the plan's parameters that would be spent on another module.

    Warns:
        LorankWarning: it is more than `NOISY`: the scoring set is too small, or was looked at too little, for this plan.

    """
    assert scores.standard_errors is not None
    source, moved = np.random.default_rng(0), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorankWarning)  # what allocate says of the plan itself, it has said
        plan = rules.last_plan(scores.scores)
        for _ in range(_DRAWS):
            drawn = {
                name: values + source.standard_normal(len(values)) * scores.standard_errors[name]
                for name, values in scores.scores.items()
            }
            moved.append(plan.moved_share(rules.last_plan(drawn)))
    share = float(np.median(moved))
    if share > NOISY:
        size = np.concatenate([np.abs(values) for values in scores.scores.values()])
        error = np.concatenate(list(scores.standard_errors.values()))
        made = scores.provenance
        looked = f"{made['scoring_batches']} scoring batches"
        if made.get("scoring_examples"):
            looked += f" from a set of {made['scoring_examples']:,} examples"
        warnings.warn(
            f"the scoring set is small for this plan: after {looked} the standard error of a score is "
            f"{float(np.median(error / np.maximum(size, 1e-30))):.0%} of it (median), and scores that differ by as much would "
            f"move {share:.0%} of the plan's parameters to other modules; score more examples, or train longer before the cut",
            LorankWarning,
            stacklevel=4,
        )
    return {"moved_by_standard_errors": round(share, 4)}
