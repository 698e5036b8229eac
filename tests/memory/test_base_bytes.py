from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.memory.conftest import CONFIGS, real_model

from lorank.memory.base_bytes import DTYPES, base_bytes, in_dtype, quantised
from lorank.models.loading import load_without_weights


def counted(model: Any) -> int:
    """Bytes of parameters, of their quantisation, and of buffers."""
    total = 0
    for tensor in (*model.parameters(), *model.buffers()):
        total += tensor.numel() * tensor.element_size()
        if (state := getattr(tensor, "quant_state", None)) is not None:
            parts = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            total += sum(part.numel() * part.element_size() for part in parts)
        if (scales := getattr(tensor, "SCB", None)) is not None:
            total += scales.numel() * scales.element_size()
    return total


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_byte_of_a_loaded_model(kind: str, config_folder: Callable[[str], str]) -> None:
    folder = config_folder(kind)
    meta = load_without_weights(folder)
    in_dtype(meta, "fp32")
    for name, dtype in DTYPES.items():
        assert base_bytes(meta, name) == counted(real_model(folder, meta, dtype)), name


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "mixtral"])
def test_every_byte_of_a_quantised_model(kind: str, bits: str, config_folder: Callable[[str], str]) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers import BitsAndBytesConfig

    folder = config_folder(kind)
    meta = load_without_weights(folder)
    in_dtype(meta, "fp32")
    real_model(folder, meta)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    options = BitsAndBytesConfig(**(four if bits == "4bit" else {"load_in_8bit": True}))
    model: Any = type(meta).from_pretrained(folder, dtype=torch.bfloat16, quantization_config=options, device_map="cpu")
    found = quantised(meta, bits, "bf16")
    packed = [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))]
    assert packed == list(found.layers)
    assert found.bytes == counted(model)
