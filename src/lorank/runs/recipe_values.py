"""Parts of a recipe as the values that models and stages take."""

from lorank.models.pretrained import Pretrained
from lorank.recipe.recipe import Recipe
from lorank.training.prepared import StageSettings


def pretrained_of(recipe: Recipe) -> Pretrained:
    """The base model that a recipe names."""
    return Pretrained(recipe.model, recipe.trust_remote_code, recipe.model_dropout)


def stage_settings_of(recipe: Recipe) -> StageSettings:
    """What the stages of a recipe have in common."""
    return StageSettings(
        seed=recipe.seed,
        scale=recipe.scale,
        lora_dropout=recipe.lora_dropout,
        precision=recipe.precision,
        gradient_checkpointing=recipe.gradient_checkpointing,
        group_by_length=recipe.group_by_length,
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        report_to=recipe.report_to,
    )
