"""Uniform LoRA: every module gets the same rank. The baseline that a plan has to beat."""

from lorank.methods.method import FrozenModelChoices, Method

UNIFORM = Method(
    name="lora",
    reference="Hu et al., LoRA, ICLR 2022, arXiv 2106.09685",
    presets={"paper": FrozenModelChoices()},
    default_preset="paper",
    takes_experts=True,
)
