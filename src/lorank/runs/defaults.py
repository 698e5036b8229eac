"""Defaults that short models and small data shrink; what the recipe says itself is never changed, but checked."""

from collections.abc import Callable
from typing import Any

from peft import TaskType

from lorank.methods import METHODS
from lorank.models.loading import load_without_weights, longest_input, task_type_of
from lorank.recipe.recipe import Recipe
from lorank.runs.recipe_values import pretrained_of
from lorank.runs.scoring_set import scoring_rows
from lorank.tasks.data import TaskData

_LEAST_PROMPT, _LEAST_TARGET = 8, 2  # what DataSection allows


def fit_to_model(recipe: Recipe, model: Any, task_type: TaskType, say: Callable[[str], None]) -> Recipe:
    """Shorten `data.max_length` and `data.max_target_length` to the positions of a model, where the recipe leaves them out.

    Args:
        recipe: as it was read.
        model: of `load_without_weights`.
        task_type: of the recipe.
        say: called with a line for each value that is changed.

    """
    data = recipe.data
    own = data.model_fields_set
    prompt, target = "max_length" not in own, data.writes and data.max_target_length is None
    asked = {"max_length": data.max_length, "max_target_length": data.target_length if data.writes else 0}
    wanted = dict(asked)
    if task_type == TaskType.CAUSAL_LM:
        positions = longest_input(model)
        if positions is not None and sum(wanted.values()) > positions:
            if target:
                room = positions // 2 if prompt else positions - wanted["max_length"]
                wanted["max_target_length"] = min(wanted["max_target_length"], max(_LEAST_TARGET, room))
            if prompt:
                wanted["max_length"] = max(_LEAST_PROMPT, positions - wanted["max_target_length"])
    else:
        encoder = model.get_encoder() if task_type == TaskType.SEQ_2_SEQ_LM else model
        if prompt and (positions := longest_input(encoder)) is not None:
            wanted["max_length"] = min(wanted["max_length"], max(_LEAST_PROMPT, positions))
        if (
            target
            and task_type == TaskType.SEQ_2_SEQ_LM
            and (positions := longest_input(model.get_decoder())) is not None
        ):
            wanted["max_target_length"] = min(wanted["max_target_length"], max(_LEAST_TARGET, positions))
    changed = {key: value for key, value in wanted.items() if value != asked[key]}
    for key, value in changed.items():
        say(f"data.{key}: {value} in place of {asked[key]}, {recipe.model} has no more positions")
    return recipe.model_copy(update={"data": data.model_copy(update=changed)}) if changed else recipe


def fitted(recipe: Recipe, data: TaskData, methods: tuple[str, ...], say: Callable[[str], None]) -> Recipe:
    """The recipe as `prepare` makes it fit its model and data, without its checks.

    Raises:
        LorankError: there is no such model, or no scoring set can be held out.

    """
    kind = task_type_of(pretrained_of(recipe), writes=recipe.data.writes)
    model = load_without_weights(recipe.model, trust_remote_code=recipe.trust_remote_code, task_type=kind)
    return fit_to_data(fit_to_model(recipe, model, kind, say), data, methods, say)


def fit_to_data(recipe: Recipe, data: TaskData, methods: tuple[str, ...], say: Callable[[str], None]) -> Recipe:
    """Lower `scoring.batch_size`, `stage1.batch_size` and `calibration.examples` to the examples that there are.

    Args:
        recipe: as it was read; what it says itself stays.
        data: its examples.
        methods: that are run; only those with a stage 1 of triplets have a scoring set, only scorers a calibration set.
        say: called with a line for each value that is changed.

    Raises:
        DataError: no scoring set can be held out.

    """
    examples, own = recipe.calibration.examples, recipe.calibration.model_fields_set
    # A scorer without options looks at weights alone.
    looks = any(METHODS[method].scorer is not None and METHODS[method].options for method in methods)
    if looks and "examples" not in own and examples > len(data.train):
        say(f"calibration.examples: {len(data.train)} in place of {examples}, the training data has no more")
        changed = recipe.calibration.model_copy(update={"examples": len(data.train)})
        recipe = recipe.model_copy(update={"calibration": changed})
    if not any(METHODS[method].trained == "triplets" for method in methods):
        return recipe
    train, scoring = scoring_rows(data.train, recipe.scoring, recipe.seed)
    for section, held in (("scoring", len(scoring)), ("stage1", len(train))):
        part = getattr(recipe, section)
        if "batch_size" not in part.model_fields_set and part.batch_size > held:
            what = "the scoring set" if section == "scoring" else "the training set without the scoring set"
            say(f"{section}.batch_size: {held} in place of {part.batch_size}, {what} has no more examples")
            recipe = recipe.model_copy(update={section: part.model_copy(update={"batch_size": held})})
    return recipe
