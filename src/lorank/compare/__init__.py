"""Comparisons that can be believed: a grid of equal budgets, scales, data orders and seeds; paired statistics; plain words."""
