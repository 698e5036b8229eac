"""Where a recipe has the learning rates of plain LoRA and of triplets: they need different ones."""

from lorank.methods.uniform import UNIFORM
from lorank.recipe.recipe import Recipe


def own_rate(recipe: Recipe, baseline: str) -> float | None:
    """Learning rate that a baseline has for itself; None: it trains at that of `train`."""
    return (recipe.baselines.get(baseline, {}).get("train") or {}).get("learning_rate")


def plain_rate_key(recipe: Recipe) -> str:
    """Name of the key that holds the learning rate of plain LoRA."""
    own = own_rate(recipe, UNIFORM.name) is not None
    return f"baselines.{UNIFORM.name}.train.learning_rate" if own else "train.learning_rate"


def triplet_rate(recipe: Recipe, times: float) -> float:
    """Learning rate of triplets: of `train` where they are kept, else of `search`, else `times` that of plain LoRA."""
    if recipe.keeps_triplets and "learning_rate" in recipe.train.model_fields_set:
        return recipe.train.learning_rate
    if recipe.search is not None and "learning_rate" in recipe.search.model_fields_set:
        return recipe.search.learning_rate
    return times * recipe.of(UNIFORM.name).train.learning_rate
