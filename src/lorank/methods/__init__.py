"""Rank-allocation methods: one file each, made of choices out of existing parts."""

from lorank.methods.method import FrozenModelChoices, Method, Preset
from lorank.methods.plugins import load_entry_points
from lorank.methods.registry import METHODS, register

__all__ = ["METHODS", "FrozenModelChoices", "Method", "Preset", "register"]

load_entry_points()
