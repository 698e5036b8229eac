"""Scores + budget + limits -> plan: pure functions, no model, no GPU."""

from lorank.allocation.budgeted import allocate

__all__ = ["allocate"]
