"""Recipes: sections, reading, checks."""
