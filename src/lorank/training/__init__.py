"""Recipes, data, the two stages, checkpoints and the run that ties them together."""
