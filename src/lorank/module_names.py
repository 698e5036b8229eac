"""Full names of modules, such as `bert.encoder.layer.0.attention.self.query`, and of tensors in adapter files, read as text.

Here, in `targets.py` and in the rules of `serving/` a name is taken apart, and nowhere else. Nothing is loaded for it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# What PEFT puts in front of the names of the base model's modules, in memory and in its files.
PEFT_PREFIX = "base_model.model."
# What torch.compile, DataParallel, FSDP and PEFT put into the names of weights.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "base_model", "base_layer", "model")
_INNER_NUMBER = re.compile(r"\.\d+\.")
_FACTOR = re.compile(r"(.*?)\.lora_(?:embedding_)?[AB]\.(.+)")


@dataclass(frozen=True)
class Place:
    """Where a module stands: which stack of blocks, which block of it, and its short name inside the block.

    `stack` is the dotted name of the list of blocks (`"bert.encoder.layer"`), `layer` the index in it, or None for
    a module outside of any list.
    """

    stack: str
    layer: int | None
    projection: str


def from_layer_on(name: str) -> str:
    """`3.mlp.up_proj` of `model.layers.3.mlp.up_proj`; a name without a layer whole."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[first:])


def places(names: Iterable[str]) -> dict[str, Place]:
    """Place of each module, from the names alone; within a block every short name is unique.

    The block is the first number in the dotted name. The short name is the shortest tail of the rest that no other
    module of the same stack shares, after a trailing `dense` (which says nothing) is dropped.

    Example:
        >>> placed = places(["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"])
        >>> [place.projection for place in placed.values()]
        ['attention.output', 'output']

    """
    split: dict[str, tuple[str, int | None, tuple[str, ...]]] = {}
    for name in names:
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        stack, layer, inner = (
            (".".join(parts[:-1]), None, parts[-1:])
            if index is None
            else (".".join(parts[:index]), int(parts[index]), parts[index + 1 :])
        )
        if len(inner) > 1 and inner[-1] == "dense":
            inner = inner[:-1]
        split[name] = (stack, layer, tuple(inner))
    inners = {(stack, inner) for stack, _, inner in split.values()}
    tails = Counter((stack, inner[k:]) for stack, inner in inners for k in range(len(inner)))
    short = {(stack, inner): _shortest_tail(stack, inner, tails) for stack, inner in inners}
    return {name: Place(stack, layer, short[stack, inner]) for name, (stack, layer, inner) in split.items()}


def _shortest_tail(stack: str, inner: tuple[str, ...], tails: Mapping[tuple[str, tuple[str, ...]], int]) -> str:
    for length in range(1, len(inner)):
        if tails[stack, inner[-length:]] == 1:
            return ".".join(inner[-length:])
    return ".".join(inner)


def stack_label(stack: str) -> str:
    """The part of a stack's name that tells it from the model's other stacks.

    Example:
        >>> stack_label("model.encoder.layers")
        'encoder'

    """
    parts = [part for part in stack.split(".") if part not in ("model", "layer", "layers", "block", "h")]
    return parts[-1] if parts else stack


def natural_order(name: str) -> tuple[tuple[int, str | int], ...]:
    """Sort key under which `layer.2` comes before `layer.10`.

    Example:
        >>> sorted(["layer.10", "layer.2"], key=natural_order)
        ['layer.2', 'layer.10']

    """
    return tuple([(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")])


def leaf_of(name: str) -> str:
    """The last part of a name, by which serving engines know a projection.

    Example:
        >>> leaf_of("model.layers.0.self_attn.q_proj")
        'q_proj'

    """
    return name.rpartition(".")[2]


def parent_of(name: str) -> str:
    """The module that holds this one, or this tensor; empty for the model itself.

    Example:
        >>> parent_of("model.layers.0.self_attn.q_proj"), parent_of("score")
        ('model.layers.0.self_attn', '')

    """
    return name.rpartition(".")[0]


def sibling(name: str, leaf: str) -> str:
    """The module beside this one, in the same parent, that is called `leaf`.

    Example:
        >>> sibling("model.layers.0.mlp.up_proj", "gate_proj"), sibling("up_proj", "gate_proj")
        ('model.layers.0.mlp.gate_proj', 'gate_proj')

    """
    parent = parent_of(name)
    return f"{parent}.{leaf}" if parent else leaf


def expert_of(name: str) -> tuple[str, int] | None:
    """A module of one routed expert: its name with `*` for the expert's number, and that number; None for any other.

    Example:
        >>> expert_of("layers.0.mlp.experts.7.up_proj")
        ('layers.0.mlp.experts.*.up_proj', 7)

    """
    found = re.search(r"\.experts\.(\d+)\.", name)
    return (f"{name[: found.start(1)]}*{name[found.end(1) :]}", int(found[1])) if found else None


def ends_with(name: str, end: str) -> bool:
    """Whether a full name is `end`, or ends with it as entries of PEFT's `target_modules` do: at a dot.

    Example:
        >>> ends_with("layer.0.output.dense", "output.dense"), ends_with("layer.0.output.dense", "put.dense")
        (True, False)

    """
    return name == end or name.endswith(f".{end}")


def shorter_ends(name: str) -> Iterator[str]:
    """Every end of a name but the name itself, the longest first.

    Example:
        >>> list(shorter_ends("layer.0.dense"))
        ['0.dense', 'dense']

    """
    while "." in name:
        name = name.partition(".")[2]
        yield name


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or a tensor is one of the modules, or inside of one.

    Example:
        >>> is_within("score.weight", ["score"]), is_within("scores.weight", ["score"])
        (True, False)

    """
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def has_part(name: str, part: str) -> bool:
    """Whether one of the parts between the dots is `part`.

    Example:
        >>> has_part("layers.0.experts.7.up_proj", "experts")
        True

    """
    return part in name.split(".")


def is_attention(name: str) -> bool:
    """Whether a module is part of an attention, by its name: one of its parts has `attn` or `attention` in it.

    Example:
        >>> is_attention("bert.encoder.layer.0.attention.output.dense"), is_attention("model.layers.0.mlp.up_proj")
        (True, False)

    """
    return any(word in part.lower() for part in name.split(".") for word in ("attn", "attention"))


def is_saved_by(name: str, entry: str) -> bool:
    """Whether an entry of PEFT's `modules_to_save` means this module, or one around it.

    PEFT reads the entry as a regular expression for some successive parts of the full name.

    Example:
        >>> is_saved_by("bert.pooler.dense", "pooler"), is_saved_by("bert.pooler.dense", "pool")
        (True, False)

    """
    return re.match(rf"(^|.*\.){entry}($|\..*)", name) is not None


def without_wrappers(name: str, prefix: str) -> str:
    """The name without what wrappers put into it, and without the base model's own prefix.

    Example:
        >>> without_wrappers("_orig_mod.bert.encoder.layer.0.output.dense.weight", "bert")
        'encoder.layer.0.output.dense.weight'

    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[1:] if parts[0] == prefix else parts)


def without_numbers(name: str) -> str | None:
    """The name with `#` for the numbers inside of it, alike for a layer of all blocks; None where it has none.

    Example:
        >>> without_numbers("encoder.layer.11.output.dense.weight")
        'encoder.layer.#.output.dense.weight'

    """
    return _INNER_NUMBER.sub(".#.", name) if _INNER_NUMBER.search(name) else None


def is_adapter_tensor(name: str) -> bool:
    """Whether a parameter of a PEFT model, or a tensor in its file, belongs to a LoRA adapter; heads and biases do not.

    Example:
        >>> is_adapter_tensor("base_model.model.score.weight"), is_adapter_tensor("base_model.model.query.lora_A.weight")
        (False, True)

    """
    return ".lora_" in name


def factor_of(name: str) -> tuple[str, str] | None:
    """For `A` or `B` of an adapter, the module, and what follows the factor: the same for both. None for any other parameter.

    Example:
        >>> factor_of("base_model.model.layer.0.query.lora_B.default.weight")
        ('base_model.model.layer.0.query', 'default.weight')

    """
    found = _FACTOR.fullmatch(name)
    return (found[1], found[2]) if found else None


def in_base_model(name: str) -> str:
    """The name without PEFT's prefix.

    Example:
        >>> in_base_model("base_model.model.bert.pooler.dense"), in_base_model("bert.pooler.dense")
        ('bert.pooler.dense', 'bert.pooler.dense')

    """
    return name.removeprefix(PEFT_PREFIX)


def parameter_of_tensor(name: str) -> str | None:
    """The base model's parameter that has as many rows as a tensor of an adapter's file.

    For a module that was trained whole that is the parameter itself, for `B` the weight that `B A` is added to; no other
    tensor of an adapter has the rows of a parameter, and gives None.

    Example:
        >>> parameter_of_tensor("base_model.model.layer.0.query.lora_B.weight"), parameter_of_tensor("score.weight")
        ('layer.0.query.weight', 'score.weight')

    """
    if is_adapter_tensor(name) and ".lora_B." not in name:
        return None
    return in_base_model(name).replace(".lora_B.", ".").replace(".default.", ".")


def without_adapter(name: str) -> str:
    """The name that a parameter has where no adapter is around its module.

    Examples:
        >>> without_adapter("base_model.model.query.base_layer.bias")
        'base_model.model.query.bias'
        >>> without_adapter("mlp.experts.base_layer.base_layer.down_proj")
        'mlp.experts.down_proj'

    """
    return re.sub(r"(\.base_layer)+\.", ".", name)
