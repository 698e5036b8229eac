"""Rank-allocation methods: one file each, made of choices out of existing parts."""

from lorank.methods.method import FrozenModelChoices, Method, Preset
from lorank.methods.registry import METHODS, register

__all__ = ["METHODS", "FrozenModelChoices", "Method", "Preset", "register"]
