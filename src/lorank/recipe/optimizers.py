"""Which optimizers of transformers a stage may train with: where ranks are cut, the state has to become smaller with them."""

from lorank.validation import nearest

# Their state is tensors of the parameter's own shape, and single numbers: a cut slices both (`lorank.adapter.shrink`). A test
# looks at each after a step.
CUT_WITH_RANKS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
# transformers' others that train an adapter of fixed ranks: state that is factored, packed in blocks across rows, or of
# bitsandbytes, whose optimizers also keep notes of parameters outside of it.
FIXED_RANKS = (
    *(
        "adafactor",
        "adamw_bnb_8bit",
        "adamw_8bit",
        "ademamix",
        "ademamix_8bit",
        "lion_32bit",
        "lion_8bit",
        "rmsprop_bnb",
    ),
    *("rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit"),
    *("paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "adamw_torch_4bit", "adamw_torch_8bit"),
)
OPTIMIZERS = (*CUT_WITH_RANKS, *FIXED_RANKS)
# By the start of their names.
_WITHOUT = {
    "galore": "projects gradients of whole matrices, an adapter's are of low rank already",
    "apollo": "projects gradients of whole matrices, an adapter's are of low rank already",
    "lomo": "steps inside of the backward pass, where nothing can be accumulated or clipped",
    "adalomo": "steps inside of the backward pass, where nothing can be accumulated or clipped",
    "schedule_free": "evaluates other weights than it trains, and those that are saved are the trained ones",
}


def known_optimizer(name: str) -> str:
    """The name, if a stage of a recipe can train with it.

    Raises:
        ValueError: it is unknown, or one that does not go with adapters; says which are allowed.

    """
    if name in OPTIMIZERS:
        return name
    why = next((f" ({reason})" for start, reason in _WITHOUT.items() if name.startswith(start)), "")
    said = f"{name!r} is not for adapters{why}" if why else f"{name!r} is unknown{nearest(name, OPTIMIZERS)}"
    raise ValueError(f"{said}; allowed: {', '.join(OPTIMIZERS)}")


def cannot_be_cut(name: str | None) -> str | None:
    """Why a stage that cuts ranks cannot train with an optimizer, and what to use; None where it can."""
    if name is None or name in CUT_WITH_RANKS:
        return None
    return (
        f"{name} keeps state that is not known to be cut with the ranks (it is factored, packed in blocks, paged, or "
        f"bitsandbytes' own); give one of {', '.join(CUT_WITH_RANKS)}"
    )
