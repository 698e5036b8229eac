"""How large the model is that adapters are put on."""

from torch import nn


def base_size(base: nn.Module) -> int:
    """Parameters of the base model: no adapters, no head that is trained whole."""
    total = 0
    for name, parameter in base.named_parameters():
        if ".lora_" in name or "modules_to_save." in name or "original_module." in name:
            continue
        # bitsandbytes packs two 4-bit weights into a byte.
        total += parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
    return total
