"""Scores + budget + limits -> plan: pure functions, no model, no GPU."""

from lorank.allocation.top_b import allocate

__all__ = ["allocate"]
