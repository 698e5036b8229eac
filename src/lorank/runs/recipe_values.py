"""Parts of a recipe as the values that models and stages take."""

from dataclasses import fields

from lorank.models.pretrained import Pretrained
from lorank.recipe.recipe import Recipe
from lorank.training.prepared import StageSettings


def pretrained_of(recipe: Recipe) -> Pretrained:
    """The base model that a recipe names."""
    return Pretrained(**{field.name: getattr(recipe.model, field.name) for field in fields(Pretrained)})


def stage_settings_of(recipe: Recipe) -> StageSettings:
    """What the stages of a recipe have in common."""
    return StageSettings(**{field.name: getattr(recipe, field.name) for field in fields(StageSettings)})
