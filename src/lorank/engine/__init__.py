"""Allocation while training: measures, smoothing, cuts, regulariser, and their state."""
