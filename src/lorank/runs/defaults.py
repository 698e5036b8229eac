"""Defaults that short models and small data shrink; what the recipe says itself is never changed, but checked."""

from collections.abc import Callable, Iterator
from typing import Any

from peft import TaskType
from rich.console import Console

from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.models.base_dtype import dtype_of_checkpoint
from lorank.models.loading import config_of, task_type_of, without_weights
from lorank.models.positions import longest_input
from lorank.recipe.method_sections import merged
from lorank.recipe.recipe import Recipe
from lorank.recipe.search_length import LEAST_STEPS, search_steps
from lorank.recipe.sections import CalibrationSet, ScoringSet, SearchSection
from lorank.runs.recipe_values import pretrained_of
from lorank.runs.scoring_set import scoring_rows
from lorank.tasks.data import TaskData
from lorank.training.steps import stage_steps

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
        say(f"data.{key}: {value} in place of {asked[key]}, {recipe.model.name} has no more positions")
    return recipe.model_copy(update={"data": data.model_copy(update=changed)}) if changed else recipe


def with_dtype(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """Write down in which dtype the base model is loaded, where the recipe leaves it to the checkpoint.

    Args:
        recipe: as it was read.
        say: called with a line where weights or matrix products are no fp32.

    Raises:
        RecipeError: there is no such model.

    """
    model, own = recipe.model, recipe.model.dtype
    dtype = own or dtype_of_checkpoint(config_of(pretrained_of(recipe)))
    if model.quantization is not None:
        say(f"the base model is loaded in {model.quantization}, its matrix products are in {dtype} (model.dtype)")
    elif own is None and dtype != "fp32":
        say(
            f"model.dtype: {dtype}, as the checkpoint; adapters and scores are fp32 (earlier versions: model.dtype=fp32)"
        )
    if dtype == "fp16" and recipe.precision == "fp32":
        say("gradients pass through fp16 layers without a loss scale; give precision=fp16, or model.dtype=bf16")
    return recipe.model_copy(update={"model": model.model_copy(update={"dtype": dtype})})


def unpacked(recipe: Recipe, console: Console) -> Recipe:
    """The recipe for trainings side by side, in which every example is a row of its own; says so where it changes anything.

    Raises:
        RecipeError: rows are streamed, or experts are targets.

    """
    if recipe.data.stream:
        raise RecipeError("data.stream: here rows are split and read several times; set it to false")
    if recipe.target_parameters is not None:
        raise RecipeError(
            "target_parameters: trainings side by side are of adapters on linear layers, not on experts; leave it out here"
        )
    if not recipe.data.packing:
        return recipe
    console.print("note: data.packing is off here, every example is a row of its own", highlight=False)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"packing": False})})


def fitted(recipe: Recipe, data: TaskData, methods: tuple[str, ...], say: Callable[[str], None]) -> Recipe:
    """The recipe as `prepare` makes it fit its model and data, without its checks.

    Raises:
        LorankError: there is no such model, or no scoring set can be held out.

    """
    kind = task_type_of(pretrained_of(recipe), writes=recipe.data.writes)
    model = without_weights(pretrained_of(recipe), kind)
    return fit_to_data(fit_to_model(with_dtype(recipe, say), model, kind, say), data, methods, say)


def fit_to_data(recipe: Recipe, data: TaskData, methods: tuple[str, ...], say: Callable[[str], None]) -> Recipe:
    """Lower `measure.scoring_batch_size`, `measure.examples` and a stage's `batch_size` to the examples that there are.

    And write down how long a search is, where the recipe or a preset says what it may cost (`search.share`), and the preset of a
    baseline whose default was another one in earlier versions.

    Args:
        recipe: as it was read; what it says itself stays.
        data: its examples.
        methods: that are run.
        say: called with a line for each value that is changed.

    Raises:
        DataError: no scoring set can be held out.

    """
    for method in methods:
        own, baseline = recipe.of(method), method != recipe.method
        changes = [*_calibration_changes(own, data), *_scoring_changes(own, data)]
        for section, key, value, why in changes:
            prefix = f"baselines.{method}." if baseline else ""
            before = getattr(getattr(own, section) or SearchSection(), key)
            say(f"{prefix}{section}.{key}: {value} in place of {before}, {why}")
            if baseline:
                sections = merged(recipe.baselines, {method: {section: {key: value}}})
                recipe = recipe.model_copy(update={"baselines": sections})
            else:
                part = getattr(recipe, section) or SearchSection()
                recipe = recipe.model_copy(update={section: part.model_copy(update={key: value})})
    for method in methods:
        if method != recipe.method and METHODS[method].earlier_default:
            named = {method: {"preset": recipe.of(method).preset}}
            recipe = recipe.model_copy(update={"baselines": merged(recipe.baselines, named)})
    return _with_lengths(recipe, data, methods, say)


def _with_lengths(recipe: Recipe, data: TaskData, methods: tuple[str, ...], say: Callable[[str], None]) -> Recipe:
    """The recipe with `search.max_steps` in place of a share. Baselines first: they take over what the recipe's search says."""
    fixed = recipe.search_share is not None and recipe.method in methods
    for method in sorted(methods, key=lambda name: name == recipe.method):
        own, train_steps = recipe.of(method), stage_steps(recipe.of(method).train, data.training_rows(len(data.train)))
        if (share := own.search_share) is not None:
            steps = search_steps(own.deciding_stage, own.train, own.measure, share, train_steps)
            place = "search" if method == recipe.method else f"baselines.{method}.search"
            fewest = min(LEAST_STEPS, train_steps)
            least = f", but no less than {fewest} steps" if steps == fewest else ""
            cost = f"it costs at most {share:.0%} of train, scoring included{least}"
            say(f"{place}.max_steps: {steps}, so that {cost} (search.share)")
            given = own.search is not None and own.search.share is not None
            length: dict[str, Any] = {"max_steps": steps, **({"share": None} if given else {})}
        elif fixed and method != recipe.method and own.has_search and not (own.search or SearchSection()).says_length:
            length = {
                "epochs": own.train.epochs,
                "max_steps": own.train.max_steps,
            }  # as train, and not as the recipe's search
        else:
            continue
        if method == recipe.method:
            search = (recipe.search or SearchSection()).model_copy(update=length)
            recipe = recipe.model_copy(update={"search": search})
        else:
            recipe = recipe.model_copy(update={"baselines": merged(recipe.baselines, {method: {"search": length}})})
    return recipe


# Section, key, value, and why.
_Change = tuple[str, str, int, str]


def _calibration_changes(recipe: Recipe, data: TaskData) -> Iterator[_Change]:
    options, count = recipe.measure, len(data.scoring or data.train)
    if isinstance(options, CalibrationSet) and "examples" not in options.model_fields_set and options.examples > count:
        yield "measure", "examples", count, "the training data has no more"


def _scoring_changes(recipe: Recipe, data: TaskData) -> Iterator[_Change]:
    options, stage = recipe.measure, recipe.deciding_stage
    if not isinstance(options, ScoringSet):
        return
    train, scoring = scoring_rows(recipe, data)
    if "scoring_batch_size" not in options.model_fields_set and options.scoring_batch_size > len(scoring):
        yield "measure", "scoring_batch_size", len(scoring), "the scoring set has no more examples"
    if not data.streams and "batch_size" not in stage.model_fields_set and stage.batch_size > len(train):
        name = "train" if recipe.keeps_triplets else "search"
        yield name, "batch_size", len(train), "the training set without the scoring set has no more examples"
