"""Rank-allocation methods: one file each, made of choices out of existing parts."""

from lorank.methods.adalora import ADALORA
from lorank.methods.i_lora import I_LORA
from lorank.methods.igu_lora import IGU_LORA
from lorank.methods.method import Method
from lorank.methods.uniform import UNIFORM

METHODS: dict[str, Method] = {method.name: method for method in (I_LORA, IGU_LORA, ADALORA, UNIFORM)}

__all__ = ["METHODS", "Method"]
