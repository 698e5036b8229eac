"""Variants of recipes: one key over several values, or named variants, run as a grid; their table and picture."""
