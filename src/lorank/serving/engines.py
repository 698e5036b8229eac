"""What each engine makes of an adapter's files: which modules it loads, by which factor it scales `B A`, what it refuses.

The rules were read from the engines' sources (docs/serving.md names versions and files); no engine is needed to apply
them. Whether an engine supports the base model's architecture is looked at only where it says so here.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorank.module_names import expert_of, leaf_of, sibling
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.peft_rules import adapted_by
from lorank.serving.projections import projections_of

# vLLM allows these for --max-lora-rank, and no others.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# TGI and LoRAX look for these projections, in this order, and for no others.
_TGI_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj")
# TensorRT-LLM knows a module under one of these names, one or two levels below the number of its layer.
_TENSORRT_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj", "gate_up_proj"}
_TENSORRT_MODULES |= {"w1", "w2", "w3", "gate"}
_OLLAMA_MODELS = ("llama", "mistral", "gemma2")


@dataclass(frozen=True)
class Loading:
    """What an engine makes of an adapter.

    Attributes:
        scales: full module name -> the factor of `B A`. A module of the adapter that is not here is served without its
            update, silently.
        refused: why the engine does not load the adapter at all; empty where it does.
        lost: modules that were trained whole and are not loaded.
        settings: what has to be set for the engine to load it.

    """

    scales: Mapping[str, float]
    refused: str = ""
    lost: tuple[str, ...] = ()
    settings: str = ""


Rule = Callable[[AdapterFiles, BaseLayers | None], Loading]


def _refused(reason: str) -> Loading:
    return Loading({}, reason)


def peft(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """PEFT: `alpha_m / r_m` by the patterns; tensors that target_modules does not match are left out."""
    if not adapter.prefixed:
        return Loading({})
    config, targets, scales = adapter.config, adapter.config.get("target_modules"), adapter.peft_scales()
    if targets is None:
        return Loading(scales)
    if targets == "all-linear":
        output = None if base is None else base.output_layer
        return Loading({module: scale for module, scale in scales.items() if module != output})
    return Loading({module: scales[module] for module in adapted_by(config, scales)})


def vllm(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """From vLLM 0.32 on: as PEFT. One head, called classifier or score, is loaded; other modules trained whole are refused."""
    if others := [name for name in adapter.modules_to_save if name not in ("classifier", "score")]:
        return _refused(f"modules_to_save may be classifier or score only, not {', '.join(others)}")
    heads = [leaf_of(name) for name in adapter.trained_whole]
    if unknown := [name for name in heads if name not in adapter.modules_to_save]:
        return _refused(f"tensors of {unknown[0]!r} are no LoRA, and not of a head that modules_to_save names")
    if len(heads) > 1 or any(leaf_of(module) in adapter.modules_to_save for module in adapter.pairs):
        return _refused("one head can be loaded, as it is and not adapted")
    return _in_slot(adapter, adapter.peft_scales())


def vllm_before_0_32(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """Up to vLLM 0.31: `lora_alpha / r` of the config for every module; the patterns are not read."""
    if whole := (*adapter.modules_to_save, *adapter.trained_whole):
        return _refused(f"modules trained whole are not supported ({', '.join(dict.fromkeys(whole))})")
    return _in_slot(adapter, dict.fromkeys(adapter.pairs, _config_scale(adapter)))


def sglang(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """SGLang: `lora_alpha / r` of the config, rsLoRA not read; patterns that change a value are refused.

    The refusal is that of its main branch. 0.5.23 does not read the patterns: a tensor of another rank than `r` fails while
    it is loaded, and another alpha is silently not used. Modules outside of a list called `layers` are dropped. Query, key and
    value are joined, and so are gate and up: a layer without the first of a group loses the rest of it.
    """
    for field, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        values = (adapter.config.get(field) or {}).values()
        if any(value != adapter.config[default] for value in values):
            return _refused(f"{field} has values other than {default} = {adapter.config[default]}")
    targets = adapter.config.get("target_modules")
    if not isinstance(targets, list) and targets not in ("all", "all-linear"):
        return _refused("target_modules must be a list of names")
    scale = adapter.config["lora_alpha"] / adapter.config["r"]
    scales = {module: scale for module in adapter.pairs if re.search(r"layers\.\d+\.", module)}
    for module in list(scales):
        missing = [name for name in joined_with(module, base) if name not in adapter.pairs]
        if missing and leaf_of(module) == "q_proj":
            return _refused(f"{module!r} is joined with {missing[0]!r}, which the adapter does not have")
        if missing:
            del scales[module]
    return Loading(scales, lost=adapter.trained_whole, settings=f"--max-lora-rank {adapter.config['r']}")


def tgi(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """TGI and LoRAX: the layers of a projection are stacked; one that any layer lacks is left out, silently.

    Ranks are padded to 8 or a multiple of 16 and have to be equal then. The scale is `lora_alpha / r` (rsLoRA: the root of r);
    once a projection has been stacked, its padded rank stands for r, so that an adapter of r = 4 has its first projection
    scaled by alpha / 4 and the others by alpha / 8.
    """
    scales: dict[str, float] = {}
    alpha, rank = adapter.config["lora_alpha"], adapter.config["r"]
    found = projections_of(adapter, base) if adapter.prefixed and not adapter.named else []
    deepest: dict[str, int] = {}
    for projection in found:
        deepest[projection.stack] = max(deepest.get(projection.stack, 0), *projection.held)
    for leaf in _TGI_PROJECTIONS:
        for projection in found:
            layers = projection.everywhere or range(deepest[projection.stack] + 1)
            if projection.leaf != leaf or set(projection.held) != set(layers):
                continue
            padded = {stackable_rank(adapter.pairs[module].rank) for module in projection.held.values()}
            if len(padded) > 1:
                return _refused(f"the layers of {leaf} have different ranks and cannot be stacked")
            scale = alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)
            scales |= dict.fromkeys(projection.held.values(), scale)
            rank = padded.pop()
    return Loading(scales, lost=adapter.trained_whole)


def tensorrt_llm(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """TensorRT-LLM: `lora_alpha / (rank of the tensor)` (rsLoRA: its root); names that it does not know are refused."""
    if refused := _unreadable(adapter):
        return _refused(refused)
    named = re.compile(r".*\.\d+\.\w+\.(?:\w+\.\d+\.)?(\w+)")  # the last part may stand below a numbered expert
    for module in adapter.pairs:
        matched = named.fullmatch(module)
        if matched is None or matched[1] not in _TENSORRT_MODULES:
            return _refused(f"{module!r} is not among the modules that it knows")
    known = ("lm_head", "embed_tokens")
    if others := [name for name in adapter.trained_whole if leaf_of(name) not in known]:
        return _refused(f"modules trained whole may be lm_head and embed_tokens only, not {', '.join(others)}")
    return Loading(_own_rank(adapter, rslora=True), settings=f"max_lora_rank={adapter.largest_rank}")


def llama_cpp(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """As llama.cpp does by its own converter: `lora_alpha / (rank of the tensor)`, no rsLoRA; an alpha of 0 is a scale of 1."""
    if whole := adapter.trained_whole:
        return _refused(f"the converter takes LoRA tensors only, not modules trained whole ({', '.join(whole)})")
    if refused := _unreadable(adapter):
        return _refused(refused)
    if base is not None and (turned := sorted(base.transposed & set(adapter.pairs))):
        return _refused(f"the converter turns the weight of {turned[0]!r} (Conv1D) and takes A for B")
    if base is not None and base.tied_output in adapter.pairs:
        return _refused(f"{base.tied_output!r} shares the input embedding's weight, and has no tensor of its own there")
    if adapter.config["lora_alpha"] == 0:
        return Loading(dict.fromkeys(adapter.pairs, 1.0))
    return Loading(_own_rank(adapter, rslora=False), settings="convert_lora_to_gguf.py")


def ollama(adapter: AdapterFiles, base: BaseLayers | None) -> Loading:
    """Ollama, reading safetensors: as llama.cpp, for Llama (and Mistral) and Gemma 2; lora_alpha must be a whole number."""
    if base is not None and base.config.model_type not in _OLLAMA_MODELS:
        return _refused(f"adapters of {base.config.model_type} models are not read, {', '.join(_OLLAMA_MODELS)} are")
    if not isinstance(adapter.config["lora_alpha"], int):
        return _refused(f"lora_alpha is {adapter.config['lora_alpha']!r}, and must be written as a whole number")
    loading = llama_cpp(adapter, base)
    return Loading(loading.scales, loading.refused, settings="ADAPTER in the Modelfile")


ENGINES: Mapping[str, tuple[str, Rule]] = {
    "peft": ("PEFT", peft),
    "vllm": ("vLLM, from 0.32", vllm),
    "vllm-0.31": ("vLLM, up to 0.31", vllm_before_0_32),
    "sglang": ("SGLang", sglang),
    "tgi": ("TGI, LoRAX", tgi),
    "tensorrt-llm": ("TensorRT-LLM", tensorrt_llm),
    "llama.cpp": ("llama.cpp", llama_cpp),
    "ollama": ("Ollama", ollama),
}
# What these make of an adapter depends on the base model too: on its layers, or on what it is.
NEED_BASE = frozenset({"sglang", "tgi", "llama.cpp", "ollama"})


def joined_with(module: str, base: BaseLayers | None) -> list[str]:
    """Modules without which SGLang, which joins query, key and value as well as gate and up, cannot load this one."""
    needed = {"q_proj": ("v_proj",), "k_proj": ("q_proj", "v_proj"), "v_proj": ("q_proj",), "up_proj": ("gate_proj",)}
    names = [sibling(module, leaf) for leaf in needed.get(leaf_of(module), ())]
    return [name for name in names if base is None or name in base.shapes]


def vllm_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` that vLLM allows for tensors of this rank; None above all of them."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def stackable_rank(rank: int) -> int:
    """The smallest rank, from `rank` on, that TGI and LoRAX leave as it is: 8, or a multiple of 16."""
    return 8 if rank <= 8 else -(-rank // 16) * 16


def _config_scale(adapter: AdapterFiles) -> float:
    rank = adapter.config["r"]
    return adapter.config["lora_alpha"] / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)


def _own_rank(adapter: AdapterFiles, *, rslora: bool) -> dict[str, float]:
    rooted = rslora and adapter.config.get("use_rslora")
    return {
        module: adapter.config["lora_alpha"] / (math.sqrt(pair.rank) if rooted else pair.rank)
        for module, pair in adapter.pairs.items()
    }


def _in_slot(adapter: AdapterFiles, scales: Mapping[str, float]) -> Loading:
    """What both rules of vLLM ask for."""
    if adapter.config.get("target_modules") is None:
        return _refused("target_modules is missing")
    if refused := _unreadable(adapter):
        return _refused(refused)
    # The config's r is compared with the slot too, whether or not a tensor has it.
    slot = vllm_rank(largest := max(adapter.largest_rank, adapter.config["r"]))
    if slot is None:
        return _refused(f"rank {largest} is above the largest --max-lora-rank, {VLLM_RANKS[-1]}")
    return Loading(scales, settings=f"--enable-lora --max-lora-rank {slot}")


def _unreadable(adapter: AdapterFiles) -> str:
    """Why engines that know PEFT's names and stack routed experts cannot read the tensors; empty where they can."""
    if adapter.named:
        return "tensors are called lora_A.default; save them with PEFT's save_pretrained"
    experts: dict[str, dict[int, int]] = {}
    for module, pair in adapter.pairs.items():
        if (found := expert_of(module)) is not None:
            experts.setdefault(found[0], {})[found[1]] = pair.rank
    for name, ranks in experts.items():
        if len(set(ranks.values())) > 1 or sorted(ranks) != list(range(len(ranks))):
            return f"experts are stacked, and those of {name!r} differ in rank or are not all there"
    return ""
