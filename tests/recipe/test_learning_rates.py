"""Rates of plain LoRA and of triplets, and what `lorank headroom` makes of them."""

from typing import Any

import pytest

from lorank.headroom.learned_plans import recipe_of_headroom
from lorank.recipe.learning_rates import plain_rate_key, triplet_rate

OWN = {"lora": {"train": {"learning_rate": 5e-4}}}
TRAIN = {"max_steps": 10, "learning_rate": 2e-3}


@pytest.mark.parametrize(
    ("recipe", "plain", "triplets"),
    [
        ({"method": "lora"}, 2e-3, 4e-3),
        ({"method": "lora", "baselines": ["i-lora"], "search": {"learning_rate": 3e-2}}, 2e-3, 3e-2),
        ({"method": "i-lora", "search": {"learning_rate": 3e-2}}, 2e-3, 3e-2),
        ({"method": "i-lora", "baselines": OWN}, 5e-4, 1e-3),
        ({"method": "igu-lora"}, 2e-3, 2e-3),
        ({"method": "igu-lora", "baselines": ["lora"]}, 2e-3, 2e-3),
        ({"method": "igu-lora", "baselines": OWN}, 5e-4, 2e-3),  # as `lorank init` writes it
        ({"method": "adalora", "baselines": OWN}, 5e-4, 2e-3),
    ],
)
def test_plain_lora_and_triplets_have_rates_of_their_own(
    recipe: dict[str, Any], plain: float, triplets: float, tiny_recipe: Any
) -> None:
    asked = tiny_recipe(preset=None, train=TRAIN, **{"search": None, **recipe})
    assert triplet_rate(asked, 2.0) == triplets
    made = recipe_of_headroom(asked, 100)
    assert made.train.learning_rate == plain
    assert made.of("adalora").train.learning_rate == made.of("i-lora").deciding_stage.learning_rate == triplets
    own = "baselines" in recipe and recipe["baselines"] is OWN
    assert plain_rate_key(asked) == ("baselines.lora.train.learning_rate" if own else "train.learning_rate")
