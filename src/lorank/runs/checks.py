"""What can be refused before any weights are loaded: targets, budget, limits, text length, options of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from peft import TaskType
from torch import nn
from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lorank.allocation.budgeted import allocate
from lorank.allocation.groups import modules_of_groups
from lorank.allocation.top_b import uniform_scores
from lorank.artefact import versions
from lorank.budget import Budget, of_group
from lorank.errors import BudgetError, RecipeError, TargetError
from lorank.findings import Findings
from lorank.methods import METHODS
from lorank.methods.registry import FULL
from lorank.model_parts import heads_of
from lorank.models.base_size import base_parameters
from lorank.models.loading import head_modules, task_type_of, without_weights
from lorank.models.positions import longest_input
from lorank.models.quantization import NOT_IN_8_BITS
from lorank.models.trained_whole import trained_whole
from lorank.module_names import is_within
from lorank.plan import RankPlan
from lorank.processes import asks_for_fsdp, only_cpu
from lorank.recipe.optimizers import cannot_be_cut
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import TrainingSection
from lorank.runs.recipe_values import pretrained_of, stage_settings_of
from lorank.scores import ImportanceScores
from lorank.targets import Target, chosen_modules, experts_in, find_targets, unit_costs
from lorank.tasks.metrics import choose_metrics, need_texts
from lorank.tasks.section import DataSection
from lorank.tasks.text_tasks import TEXT_TASKS
from lorank.training.plan_stage import scaled_plan
from lorank.training.prepared import StageSettings
from lorank.training.stage import training_arguments
from lorank.unsuitable import model_type_of


def check_model(recipe: Recipe, methods: Sequence[str]) -> tuple[tuple[Target, ...], dict[str, Any]]:
    """Check whatever the recipe and the model's config decide for these methods: no weights are loaded, nothing is written.

    Returns:
        The targets, and the provenance that scores and plan carry.

    Raises:
        LorankError: targets, budget, limits, metrics, text length or training options that do not fit; several findings are
            raised as one.

    """
    findings = Findings()
    with findings.check():
        choose_metrics(recipe.data.task, recipe.metrics)
    with findings.check():
        stages = {"train": recipe.train} | ({"search": recipe.deciding_stage} if recipe.has_search else {})
        _check_training_options(stage_settings_of(recipe), stages)
    with findings.check():
        _check_sharded(recipe)
    for method in methods:
        with findings.check():
            _check_optimizer(recipe.of(method), baseline=method != recipe.method)
    model, targets_and_provenance = None, None
    with findings.check():
        task_type = task_type_of(pretrained_of(recipe), writes=recipe.data.writes)
        model = without_weights(pretrained_of(recipe), task_type)
    if model is not None:
        with findings.check():
            _check_length(recipe.data, recipe.model.name, model, task_type)
        with findings.check():
            targets_and_provenance = _check_budget(recipe, methods, model, task_type)
    findings.raise_all()
    assert targets_and_provenance is not None, "it raised, or is there"
    return targets_and_provenance


def _check_budget(
    recipe: Recipe, methods: Sequence[str], model: nn.Module, task_type: TaskType
) -> tuple[tuple[Target, ...], dict[str, Any]]:
    """Targets and provenance, when the budget and the limits can be honoured."""
    chosen = (recipe.target_modules, recipe.exclude_modules, recipe.target_parameters)
    targets = find_targets(model, *chosen)
    heads = head_modules(model) if task_type == TaskType.SEQ_CLS else ()
    if inside := [target.name for target in targets if is_within(target.name, heads)]:
        raise TargetError(
            f"target_modules match {inside[0]!r}, part of the head, which is trained whole; name the others more closely"
        )
    whole = trained_whole(model, recipe.model.modules_to_save, heads).names
    if inside := [target.name for target in targets if is_within(target.name, whole)]:
        raise TargetError(
            f"{inside[0]!r} would be trained whole (model.modules_to_save), and is a target; name it in one of them, or give it "
            "to exclude_modules"
        )
    output = next(
        (name for name, part in model.named_modules() if recipe.model.new_tokens and part in heads_of(model)), None
    )
    if output and any(target.name == output for target in targets):
        raise TargetError(
            f"{output!r} is a target, and would train the rows of model.new_tokens: give it to exclude_modules"
        )
    size, budget, findings = base_parameters(model), recipe.read_budgets, Findings()
    trains = any(METHODS[method].allocates_in_training for method in methods)
    if isinstance(budget, Budget):
        _check_offered(recipe, budget, targets, size, trains=trains)
    else:
        named = {target.name: target for target in targets}
        for group, names in modules_of_groups(named, budget).items():
            with findings.check(), of_group(group):
                _check_offered(recipe, budget[group], [named[name] for name in names], size, trains=trains)
        findings.raise_all()
    provenance = {
        "model": recipe.model.name,
        "model_type": model_type_of(model),
        "base_parameters": size,
        "preset": recipe.preset,
        "seed": recipe.seed,
        "scale": recipe.scale,
        **chosen_modules(*chosen),
        **experts_in(targets),
        "versions": versions(),
    }
    for method in methods:
        # The limits are tried on equal scores now, not after an hour of training.
        own = recipe.of(method)
        allocate_for(own, equal_scores(own, targets, provenance))
    return targets, provenance


def _check_offered(recipe: Recipe, budget: Budget, targets: Sequence[Target], base_size: int, *, trains: bool) -> None:
    """Whether these targets can take the budget, where triplets that train offer no more than their initial rank."""
    costs, initial, limits = unit_costs(tuple(targets)), recipe.triplets.initial_rank, recipe.ranks
    parameters = budget.parameters(costs, base_parameters=base_size, initial_rank=initial)
    most = min(initial, limits.max_rank or initial) // limits.multiple_of * limits.multiple_of
    offered = sum(min(most, target.max_rank) * target.unit_cost for target in targets)
    if trains and not budget.counts_units and parameters > offered:
        raise BudgetError(
            f"budget {budget} is {parameters:,} parameters, but at most rank {most} in every module is on offer "
            f"({offered:,}); raise triplets.initial_rank (now {initial}) or ranks.max_rank, or ask for less"
        )


def _check_length(data: DataSection, name: str, model: Any, task_type: TaskType) -> None:
    needed = [("data.max_length", data.max_length, model)]
    if task_type == TaskType.SEQ_2_SEQ_LM:
        needed = [
            ("data.max_length", data.max_length, model.get_encoder()),
            ("data.max_target_length", data.target_length, model.get_decoder()),
        ]
    elif task_type == TaskType.CAUSAL_LM:
        needed = [("data.max_length + max_target_length", data.max_length + data.target_length, model)]
    for what, tokens, part in needed:
        positions = longest_input(part)
        if positions is not None and tokens > positions:
            raise RecipeError(f"{what} is {tokens}, but {name} has {positions} positions; lower it")


def _check_optimizer(recipe: Recipe, *, baseline: bool) -> None:
    """Whether the optimizer can follow what the method's stage does with its ranks."""
    if not METHODS[recipe.method].allocates_in_training:
        return
    stage, key = recipe.deciding_stage, "search" if recipe.has_search else "train"
    place = f"baselines.{recipe.method}.{key}" if baseline else key
    if reason := cannot_be_cut(stage.optimizer):
        raise RecipeError(f"{place}.optimizer: {reason}")
    if stage.loraplus_lr_ratio is not None:
        raise RecipeError(
            f"{place}.loraplus_lr_ratio: this stage of {recipe.method} trains triplets, not A and B; set it to null there"
        )


def _check_sharded(recipe: Recipe) -> None:
    """What cannot be done where every process holds a part of the base (`accelerate launch --use_fsdp`)."""
    if not asks_for_fsdp() or only_cpu():
        return
    if FULL in (recipe.method, *recipe.baselines):
        raise RecipeError(f"{FULL}: no weight can stay whole under FSDP, and all of them train; run it without FSDP")
    if recipe.model.quantization == "8bit":
        raise RecipeError(f"model.quantization: {NOT_IN_8_BITS}; use 4bit, or run it without FSDP")
    if recipe.data.task not in TEXT_TASKS or recipe.data.test is None:
        return
    if need_texts(metrics := recipe.metrics or TEXT_TASKS[recipe.data.task].metrics):
        raise RecipeError(
            f"data.test: a model that FSDP has sharded does not write texts here, and {', '.join(metrics)} needs them; "
            "ask for metrics: [log_likelihood], or leave data.test out and evaluate the adapter afterwards (lorank evaluate)"
        )


def _check_training_options(settings: StageSettings, stages: Mapping[str, TrainingSection]) -> None:
    known = ("none", "all", *INTEGRATION_TO_CALLBACK)
    if settings.report_to not in known:
        raise RecipeError(f"report_to is {settings.report_to!r}; allowed: {', '.join(known)}")
    for name, section in stages.items():
        try:
            Trainer.get_optimizer_cls_and_kwargs(training_arguments(settings, section, Path(gettempdir())))
        except (ValueError, ImportError) as error:
            raise RecipeError(f"{name}: transformers refuses these options: {error}") from None


def equal_scores(recipe: Recipe, targets: tuple[Target, ...], provenance: Mapping[str, Any]) -> ImportanceScores:
    """Scores of the shape that the recipe's method will give, all alike: uniform LoRA's scores, and a trial of the limits."""
    costs, initial, method = unit_costs(targets), recipe.triplets.initial_rank, METHODS[recipe.method]
    largest = {target.name: target.max_rank for target in targets}

    def up_to(units: int) -> ImportanceScores:
        return uniform_scores(costs, {name: min(units, most) for name, most in largest.items()}, provenance)

    if method.allocates_in_training:
        return up_to(initial)
    if method.scored == "modules":
        return replace(uniform_scores(costs, 1, provenance), max_ranks=largest)
    if method.scorer is not None:
        return up_to(getattr(recipe.measure, "components", max(largest.values())))
    # Uniform LoRA has no triplets that limit the units of a module, only its matrix does. As many are enough as the budget
    # pays for where small modules (a gate with one output) leave their share to the others.
    size, budget = {"base_parameters": provenance.get("base_parameters"), "initial_rank": initial}, recipe.read_budgets
    units = min(initial, *largest.values())
    members = {"": list(costs)} if isinstance(budget, Budget) else modules_of_groups(costs, budget)
    for group, names in members.items():
        own = budget if isinstance(budget, Budget) else budget[group]
        parameters = own.parameters({name: costs[name] for name in names}, **size)
        most = max(largest[name] for name in names)
        while units < most and parameters >= sum(min(units, largest[name]) * costs[name] for name in names):
            units *= 2
    return up_to(max(units, initial, min(largest.values())))


def allocate_for(recipe: Recipe, scores: ImportanceScores) -> RankPlan:
    """The plan of the recipe's method within its budget and limits.

    Raises:
        AllocationError: limits that cannot be honoured.

    """
    limits, budget, initial = recipe.ranks.model_dump(), recipe.read_budgets, recipe.triplets.initial_rank
    if not METHODS[recipe.method].allocates_in_training:
        # A share of the initial units, which a method that trains no triplets does not have: what they cost at the mean.
        size = {"base_parameters": scores.provenance["base_parameters"], "initial_rank": initial}
        if isinstance(budget, Budget):
            budget = budget.in_parameters(scores.unit_costs, **size)
        else:
            members = modules_of_groups(scores.unit_costs, budget)
            budget = {
                group: one.in_parameters({name: scores.unit_costs[name] for name in members[group]}, **size)
                for group, one in budget.items()
            }
    plan = allocate(scores, budget, scale=recipe.scale, **limits)
    return scaled_plan(plan, recipe.scale * initial, recipe.start.scale_by)
