"""Whole runs: stages in order, in an output directory."""
