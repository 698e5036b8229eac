"""Rank-allocation methods: one file each, made of choices out of existing parts."""

from lorank.methods.i_lora import I_LORA
from lorank.methods.method import Method
from lorank.methods.uniform import UNIFORM

METHODS: dict[str, Method] = {method.name: method for method in (I_LORA, UNIFORM)}

__all__ = ["METHODS", "Method"]
