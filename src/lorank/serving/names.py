"""What can be chosen on the command line: known without torch, so that a typing error costs no time."""

from collections.abc import Iterable

from lorank.errors import AdapterError
from lorank.validation import nearest

ENGINES = ("peft", "vllm", "vllm-0.31", "sglang", "tgi", "tensorrt-llm", "llama.cpp", "ollama")
FORMS = ("any", "vllm", "llama.cpp", "peft")
TOOLS = ("peft", "axolotl", "llama-factory", "ms-swift", "unsloth", "seed-adapter")
# Short names as they are typed everywhere -> torch's.
DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
DTYPES |= {"float16": "float16", "fp16": "float16"}


def choose(kind: str, got: str, allowed: Iterable[str]) -> str:
    """The allowed name that was meant, whatever its case.

    Raises:
        AdapterError: no such name; names the nearest.

    """
    names = list(allowed)
    if got.lower() not in names:
        raise AdapterError(f"{kind} {got!r} is unknown{nearest(got.lower(), names)}; allowed: {', '.join(names)}")
    return got.lower()
