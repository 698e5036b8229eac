"""A LoRA adapter as a GGUF file, for llama.cpp and for Ollama, written with the `gguf` package."""

from pathlib import Path
from typing import Any

import torch

from lorank.artefact import write_atomically
from lorank.errors import AdapterError
from lorank.module_names import leaf_of
from lorank.serving.adapter_files import AdapterFiles, LoraPair
from lorank.serving.base_layers import BaseLayers
from lorank.serving.forms import for_llama_cpp

# model_type of a transformers config -> architecture of GGUF, and whether llama.cpp stores rotary pairs of the query and key
# side by side where transformers stores halves, so that rows have to change places. All are compared with llama.cpp's converter.
_ARCHITECTURES = {
    "llama": ("LLAMA", True),
    "mistral": ("LLAMA", True),
    "qwen2": ("QWEN2", False),
    "qwen3": ("QWEN3", False),
    "gemma2": ("GEMMA2", False),
    "phi3": ("PHI3", False),
}


def check_gguf(adapter: AdapterFiles, base: BaseLayers) -> None:
    """Refuse what has no GGUF form, before anything is written.

    Raises:
        AdapterError: the `gguf` package is missing, another architecture, modules that llama.cpp does not know, or trained whole.

    """
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise AdapterError("a GGUF file is written with the gguf package: pip install 'lorank[gguf]'") from None
    if base.config.model_type not in _ARCHITECTURES:
        hint = "" if base.transposed else "; llama.cpp's own converter may know it, from an export --for llama.cpp"
        raise AdapterError(
            f"no GGUF adapter can be written for {base.config.model_type!r} models; allowed: {', '.join(_ARCHITECTURES)}{hint}"
        )
    if adapter.saved_modules:
        raise AdapterError(
            f"{next(iter(adapter.saved_modules))!r} was trained whole, and a GGUF adapter holds LoRA tensors only; merge the "
            "adapter into its base model (lorank merge) and convert that"
        )
    names = _tensor_names(base)
    if base.tied_output in adapter.pairs:
        raise AdapterError(
            f"{base.tied_output!r} shares the input embedding's weight and has no tensor of its own in llama.cpp; leave it out "
            "of target_modules"
        )
    for module in adapter.pairs:
        if names.get_name(f"{module}.weight", (".weight",)) is None:
            raise AdapterError(f"llama.cpp knows no tensor for {module!r}; adapt the projections of the blocks only")


def write_gguf(adapter: AdapterFiles, base: BaseLayers, path: Path) -> None:
    """Write the adapter as GGUF in fp32: `NAME.lora_a: (r, d_in)`, `NAME.lora_b: (d_out, r)`, and one alpha.

    llama.cpp multiplies `B A` by `alpha / r_m` of the tensor's own rank, so `B` holds `s_m r_m / alpha` (`for_llama_cpp`).

    Raises:
        AdapterError: as `check_gguf`.

    """
    check_gguf(adapter, base)
    import gguf

    names, permuted = _tensor_names(base), _ARCHITECTURES[base.config.model_type][1]
    compact = for_llama_cpp(adapter, base, torch.float32)

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[_architecture(base)])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(compact.config["lora_alpha"]))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for module, pair in compact.pairs.items():
            name = names.get_name(f"{module}.weight", (".weight",))
            b = _rotary_rows(module, pair, base.config) if permuted else pair.b
            writer.add_tensor(f"{name}.lora_a", pair.a.contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", b.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, write)


def _architecture(base: BaseLayers) -> Any:
    import gguf

    return gguf.MODEL_ARCH[_ARCHITECTURES[base.config.model_type][0]]


def _tensor_names(base: BaseLayers) -> Any:
    import gguf

    return gguf.get_tensor_name_map(_architecture(base), base.config.num_hidden_layers)


def _rotary_rows(module: str, pair: LoraPair, config: Any) -> torch.Tensor:
    """Rows of B in llama.cpp's order: within a head, `(x_0 .. x_h/2, y_0 .. y_h/2)` becomes `(x_0, y_0, x_1, y_1, ...)`."""
    if leaf_of(module) == "q_proj":
        heads = config.num_attention_heads
    elif leaf_of(module) == "k_proj":
        heads = config.num_key_value_heads or config.num_attention_heads
    else:
        return pair.b
    return pair.b.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
