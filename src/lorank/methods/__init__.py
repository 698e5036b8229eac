"""Rank-allocation methods: one file each, made of choices out of existing parts."""

from lorank.methods.adalora import ADALORA
from lorank.methods.eva import EVA
from lorank.methods.gradient import GRADIENT
from lorank.methods.i_lora import I_LORA
from lorank.methods.igu_lora import IGU_LORA
from lorank.methods.magnitude import MAGNITUDE
from lorank.methods.method import Method
from lorank.methods.sensitivity_lora import SENSITIVITY_LORA
from lorank.methods.uniform import UNIFORM

_ALL = (I_LORA, IGU_LORA, ADALORA, SENSITIVITY_LORA, GRADIENT, MAGNITUDE, EVA, UNIFORM)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}

__all__ = ["METHODS", "Method"]
