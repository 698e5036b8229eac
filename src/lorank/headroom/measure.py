"""`lorank headroom`: can ranks matter on this task? Plans at one budget, seed by seed, until the answer is clear."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lorank.budget import Budget
from lorank.compare.cost import duration
from lorank.errors import ComparisonError, DataError, RecipeError
from lorank.headroom.learned_plans import LEARNED, learned_plans, recipe_of_headroom
from lorank.headroom.picture import draw_headroom
from lorank.headroom.plans import tried_plans
from lorank.headroom.results import (
    LEAST_HELD_OUT,
    RESULT,
    HeadroomOptions,
    Measured,
    check_held_out,
    looks_made,
    times_chosen,
    write_result,
)
from lorank.headroom.training import SideBySide, side_by_side
from lorank.headroom.verdict import LEAST_SEEDS, headroom_from_losses, looks_until
from lorank.models.loading import config_of
from lorank.models.pretrained import Pretrained
from lorank.plan import RankPlan
from lorank.processes import processes
from lorank.recipe.learning_rates import own_rate, plain_rate_key
from lorank.recipe.recipe import Recipe
from lorank.runs.defaults import unpacked
from lorank.runs.output import locked_directory
from lorank.runs.prepare import prepare
from lorank.targets import unit_costs
from lorank.tasks.data import hold_out, load_task_data
from lorank.training.prepared import Prepared
from lorank.training.stacked_training import trained_otherwise
from lorank.training.steps import stage_steps

PICTURE = "headroom.png"
_SHARE_HELD_OUT = 0.2


def measure_headroom(
    recipe: Recipe, directory: Path, options: HeadroomOptions | None = None, console: Console | None = None
) -> Measured:
    """Train plans side by side, seed by seed, until the verdict is clear or the seeds are used up; or continue.

    Plans are judged on examples of the training data that nothing is trained on. The test part is not used.

    Args:
        recipe: of any method; its model, data, budget, targets and `train` count.
        directory: for results; what is there already is read back.
        options: how much is tried.
        console: for lines of progress.

    Raises:
        LorankError: bad input, found before anything expensive; a directory of another measurement.

    """
    options, console = options or HeadroomOptions(), console or Console(stderr=True)
    if processes().num_processes > 1:
        raise RecipeError("headroom runs in one process, and there are several; start it without torchrun")
    Budget.parse(recipe.budget)  # one for all modules
    recipe = unpacked(recipe, console)
    data = load_task_data(recipe.data)
    share = min(_SHARE_HELD_OUT, options.held_out / len(data.train))
    kept, held = hold_out(data.train, share, recipe.seed)
    if len(held) < LEAST_HELD_OUT:
        raise DataError(
            f"{len(held)} of {len(data.train)} training examples can be held out to judge plans on; at least {LEAST_HELD_OUT} "
            "are needed: give more training data"
        )
    own, prepared = prepare(recipe_of_headroom(recipe, len(kept)), ("lora",), console, data)
    console.print(
        f"learning rates: {own.train.learning_rate:g} for plain LoRA ({plain_rate_key(recipe)}), "
        f"{own_rate(own, 'adalora'):g} for AdaLoRA, {own.of('i-lora').deciding_stage.learning_rate:g} for the search",
        highlight=False,
    )
    prepared = replace(prepared, data=replace(data, train=kept))
    with locked_directory(directory, own, data, prepared.provenance):
        return _measure(own, prepared, held, directory, options, console)


def _measure(
    recipe: Recipe, prepared: Prepared, held: Any, directory: Path, options: HeadroomOptions, console: Console
) -> Measured:
    began = time.monotonic()
    size = {"base_parameters": prepared.provenance["base_parameters"], "initial_rank": recipe.triplets.initial_rank}
    budget = recipe.read_budget.parameters(unit_costs(prepared.targets), **size)
    plans, left_out = tried_plans(prepared.targets, budget, recipe.scale, random=options.random, seed=recipe.seed)
    if len(plans) < 2:
        raise ComparisonError(
            f"no plan differs from uniform ranks with {len(prepared.targets)} targets at this budget, so ranks cannot matter; "
            "give more target_modules, or a budget of more units of rank"
        )
    halves, judged = _judged(held, prepared)
    config = config_of(prepared.base)
    for note in _notes(recipe, prepared.base, config):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    trained = SideBySide(
        prepared=prepared,
        section=recipe.train,
        steps=stage_steps(recipe.train, len(prepared.data.train)),
        held_out=judged,
        folder=directory / "losses",
        console=console,
        most=options.side_by_side or 1,
    )
    check_held_out(directory, trained)
    if options.side_by_side is None:
        fitting = side_by_side(prepared, config, recipe.train.batch_size, max(trained.lengths))
        trained.most = min(fitting, len(plans) + len(LEARNED))
    seeds = [recipe.seed + number for number in range(options.seeds)]
    _say_cost(trained, plans, seeds, console)
    learned, more = learned_plans(recipe, prepared, budget, directory / "learned", console, plans)
    plans, left_out = plans | learned, left_out | more
    for name, plan in plans.items():
        if not (path := directory / "plans" / f"{name.replace(', ', '-').replace(' ', '-')}.json").exists():
            plan.save(path)
    made = looks_made(directory / RESULT, plans, options.smallest)
    arrays, measured = list[np.ndarray](), None
    for look in [*made, *looks_until(options.seeds, made)]:
        while len(arrays) < look.seeds:
            arrays.append(trained.losses(plans, recipe.seed + len(arrays)))
        losses = np.stack(arrays, 1)
        headroom = headroom_from_losses(losses, halves, look=look, smallest=options.smallest)
        console.print(f"{look.seeds} seeds: {headroom.sentence}", highlight=False, soft_wrap=True)
        times = times_chosen(losses, halves, plans)
        measured = Measured(headroom, plans, losses, times, left_out, directory, trained.steps)
        if look not in made:
            made.append(look)
            seconds = time.monotonic() - began
            write_result(measured, made, recipe, trained, {"options": asdict(options), "seconds": seconds})
        if headroom.verdict != "cannot tell":
            break
    assert measured is not None, "there is at least one look"
    draw_headroom(list(plans), measured.losses.mean(2), measured.headroom, directory / PICTURE)
    return measured


def _judged(held: Any, prepared: Prepared) -> tuple[np.ndarray, Any]:
    """Halves `(examples,)` bool, examples of one text in the same one; and the examples as tokens, in the same order."""
    half_of = {content: number % 2 == 0 for number, content in enumerate(sorted(set(held["content"][:])))}
    halves = np.array([half_of[content] for content in held["content"][:]])
    tokens = prepared.tokenize(held)
    order = np.argsort(tokens["length"], kind="stable")  # less padding
    return halves[order], tokens.select(order).remove_columns("length")


def _notes(recipe: Recipe, base: Pretrained, config: Any) -> list[str]:
    """What is not as in a run of the recipe."""
    shares = (
        [value for key, value in config.to_dict().items() if key.endswith(("dropout", "dropout_prob", "pdrop"))]
        if base.dropout is None
        else [base.dropout]
    )
    notes = []
    if recipe.lora_dropout or any(isinstance(share, int | float) and share > 0 for share in shares):
        notes.append(
            "plans that train side by side train without dropout, which would be drawn for all of them at once"
        )
    if recipe.precision == "fp16":
        notes.append("precision fp16: plans that train side by side train in fp32")
    notes += trained_otherwise(recipe.train)
    if recipe.model.modules_to_save or recipe.model.new_tokens:
        notes.append("plans that train side by side train without model.modules_to_save and new_tokens")
    return notes


def _say_cost(trained: SideBySide, plans: Mapping[str, RankPlan], seeds: Sequence[int], console: Console) -> None:
    """Say what is left to train, and how long it takes, from a few steps."""
    left = [seed for seed in seeds if not trained.complete(plans, seed)]
    if not left:
        return
    of_seed = trained.timed(list(plans.values()), left[0]) * (1 + len(LEARNED) / len(plans))
    least = max(1, sum(seed in left for seed in seeds[:LEAST_SEEDS]))
    numbers, times = [f"{least}", f"{len(left)}"], [duration(least * of_seed), duration(len(left) * of_seed)]
    of_step = trained.section.batch_size * trained.section.gradient_accumulation
    console.print(
        f"cost: {len(plans) + len(LEARNED)} plans x {_range(numbers)} {'seed' if len(left) == 1 else 'seeds'} x {trained.steps} "
        f"steps of {of_step} examples, {trained.most} plans in one pass: about "
        f"{_range(times)}; and before that the training of {len(LEARNED)} plans by methods",
        highlight=False,
        soft_wrap=True,
    )


def _range(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))
