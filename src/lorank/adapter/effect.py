"""Whether an adapter changes its model at all."""

import warnings

from torch import nn

from lorank.errors import LorankWarning
from lorank.module_names import factor_of

# Below this a product of two factors is no longer a number that fp32 can add to a weight.
NOTHING = 1e-30


def has_no_effect(model: nn.Module) -> bool:
    """Whether every adapted module has a factor (`lora_A` or `lora_B`) with all entries below 1e-30 in size.

    Values that are not finite count as an effect. A model without adapters is not asked about: False.
    """
    switched_off: dict[tuple[str, str], bool] = {}
    for name, parameter in model.named_parameters():
        pair = factor_of(name)
        if pair is None or parameter.device.type == "meta":
            continue
        values = parameter.detach()
        empty = values.numel() == 0 or bool(values.abs().max() < NOTHING)  # NaN is not below
        switched_off[pair] = switched_off.get(pair, False) or empty
    return bool(switched_off) and all(switched_off.values())


def warn_without_effect(model: nn.Module, name: str) -> None:
    """Say it when a trained adapter does nothing; `name` says which one it is.

    Warns:
        LorankWarning: no LoRA matrix product differs from zero.

    """
    if has_no_effect(model):
        warnings.warn(
            f"{name}: lora_B is below {NOTHING:g} everywhere after training, so the adapter does nothing; raise the learning "
            "rate, train longer, or look whether the loss has a gradient",
            LorankWarning,
            stacklevel=3,
        )
