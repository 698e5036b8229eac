"""The answer as keys of the recipe that was asked about."""

from dataclasses import dataclass
from typing import Any

import yaml

from lorank.methods import METHODS
from lorank.methods.uniform import UNIFORM
from lorank.recipe.files import make_recipe
from lorank.recipe.learning_rates import plain_rate_key
from lorank.recipe.method_sections import merged
from lorank.recipe.recipe import Recipe
from lorank.suggest.answer import Answer


@dataclass(frozen=True)
class Snippet:
    """Keys of a recipe.

    Attributes:
        content: as Python values.
        text: as YAML.

    """

    content: dict[str, Any]
    text: str


def snippet_of(recipe: Recipe, answer: Answer) -> Snippet:
    """Budget and learning rates for a recipe: each method gets that of its stages.

    `train` is LoRA's rate; that of triplets where the recipe's method keeps them, if one was looked for. `search` is that of
    triplets, where a method of the recipe has such a stage.
    """
    plain = _rounded(answer.rates[answer.to_start_with])
    content: dict[str, Any] = {"budget": f"r={answer.ranks[answer.to_start_with]}"}
    triplets = _rounded(answer.triplets.best) if answer.triplets else None
    if not recipe.keeps_triplets:
        content["train"] = {"learning_rate": plain}
    elif triplets is not None:
        content["train"] = {"learning_rate": triplets}
    if UNIFORM.name in recipe.baselines and (recipe.keeps_triplets or plain_rate_key(recipe) != "train.learning_rate"):
        content["baselines"] = {UNIFORM.name: {"train": {"learning_rate": plain}}}
    every = (recipe, *(recipe.of(name) for name in recipe.baselines if name in METHODS))
    if triplets is not None and not recipe.keeps_triplets and any(one.has_search for one in every):
        content["search"] = {"learning_rate": triplets}
    own = recipe.model_dump(exclude_unset=True, exclude={"resolved"})
    make_recipe(merged(own, content))  # what is offered can be used
    lines = [f"# {line}" for line in answer.words()]
    return Snippet(content, "\n".join([*lines, yaml.safe_dump(content, sort_keys=False)]))


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
