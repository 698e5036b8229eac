"""`lorank suggest`: short runs at a few budgets, a curve, the smallest budget that is enough, and rates to start with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from lorank.artefact import write_json, write_text
from lorank.console import say
from lorank.errors import RecipeError, TrainingError
from lorank.findings import Findings
from lorank.methods.uniform import UNIFORM
from lorank.processes import processes
from lorank.recipe.learning_rates import plain_rate_key, triplet_rate
from lorank.recipe.recipe import Recipe
from lorank.runs.defaults import unpacked
from lorank.runs.output import locked_directory
from lorank.runs.prepare import prepare
from lorank.suggest.answer import Answer, answer_of
from lorank.suggest.answer_picture import draw_answer
from lorank.suggest.cost import Cost
from lorank.suggest.kept_parts import KeptParts
from lorank.suggest.question import LEAST_SEEDS, LEAST_STEPS, MOST_STEPS, Question, check_parameters
from lorank.suggest.rates import TriedRates, rate_between, search_rates
from lorank.suggest.short_runs import ShortRuns, SplitRows, split_rows
from lorank.suggest.snippet import snippet_of
from lorank.training.prepared import Prepared
from lorank.training.stacked_training import trained_otherwise
from lorank.training.steps import check_warmup, stage_steps

RATE_SEED = 1000  # of the runs that choose rates; no seed of the curve
_TIMES_LORA = 4.0  # where a recipe gives triplets no rate: they start small, and need a larger one than LoRA's factors
_JUDGING = 0.4  # what a forward pass of an example takes, in parts of its training step


def suggest(recipe: Recipe, question: Question, folder: Path, console: Console | None = None) -> Answer:
    """Say how much rank a task needs, and with which learning rates to start. The test part is not looked at.

    A part of the training data is held out. Plain LoRA of each uniform rank is trained on the rest for a few steps, with several
    seeds, and judged on what is held out; all ranks of a seed share the order of the data and the starts of their units. Before
    that, rates are tried for the smallest and the largest rank, and for triplets. Finished parts are kept in `folder`: the
    same call again continues.

    Args:
        recipe: model, data, and `train`. Its method does not matter for the curve.
        question: options.
        folder: for parts, `suggestion.json`, `suggestion.yaml` and `suggestion.png`.
        console: for lines of progress.

    Raises:
        LorankError: a recipe, data or options that cannot work, before anything is trained; no time for the least of it; a
            largest budget that diverged.

    """
    console = console or Console(quiet=True)
    work = _prepared(recipe, question, console)
    with locked_directory(folder, work.recipe, work.prepared.data, work.prepared.provenance):
        return _answer(work, question, folder, console)


@dataclass(frozen=True)
class _Work:
    """What was checked."""

    recipe: Recipe  # of uniform LoRA
    asked: Recipe
    prepared: Prepared
    rows: SplitRows
    steps: int
    parameters: tuple[int, ...]

    @property
    def triplet_start(self) -> tuple[int, float]:
        """Rank and learning rate that triplets start with; no part of the recipe of uniform LoRA."""
        return self.asked.triplets.initial_rank, triplet_rate(self.asked, _TIMES_LORA)


def _prepared(recipe: Recipe, question: Question, console: Console) -> _Work:
    if processes().num_processes > 1:
        raise RecipeError("lorank suggest runs in one process; start it without torchrun")
    recipe = unpacked(recipe, console)
    uniform = Recipe(
        **{
            **recipe.of(UNIFORM.name).model_dump(
                exclude_unset=True, exclude={"baselines", "budget", "search", "resolved"}
            ),
            "budget": f"r={question.ranks[-1]}",
        }
    )
    uniform, prepared = prepare(uniform, (UNIFORM.name,), console)
    targets = prepared.targets
    parameters = tuple(
        sum(min(rank, target.max_rank) * target.unit_cost for target in targets) for rank in question.ranks
    )
    findings = Findings()
    with findings.check():
        check_parameters(question.ranks, parameters)
    rows = split_rows(prepared, question.fraction, recipe.seed)
    steps = question.steps or min(MOST_STEPS, stage_steps(uniform.train, len(rows.train)))
    with findings.check():
        check_warmup("train", uniform.train.model_copy(update={"max_steps": steps}), len(rows.train))
    findings.raise_all()
    for note in trained_otherwise(uniform.train):
        console.print(f"note: {note}", highlight=False)
    if recipe.model.modules_to_save or recipe.model.new_tokens:
        console.print(
            "note: the short runs of plain LoRA train without model.modules_to_save and new_tokens", highlight=False
        )
    if uniform.lora_dropout or uniform.model.dropout != 0:
        console.print("note: the short runs of plain LoRA are without dropout", highlight=False)
    return _Work(uniform, recipe, prepared, rows, steps, parameters)


def _answer(work: _Work, question: Question, folder: Path, console: Console) -> Answer:
    begun = time.monotonic()
    rank, rate = work.triplet_start
    asked = {**question.record(work.steps), "triplets": {"rank": rank, "learning_rate": rate}}
    kept = KeptParts(folder / "parts", asked)
    runs = ShortRuns(work.prepared, work.rows, work.recipe.train, work.steps, question.side_by_side)
    seeds = _seeds_in_time(work, question, runs, kept, console)

    lora = _lora_rates(work, question, runs, kept, console)
    triplets = _triplet_rates(work, question, runs, kept, folder, console) if question.triplets else None
    ends = [(rank, lora[rank].best) for rank in (question.ranks[0], question.ranks[-1])]
    rates = [rate_between(rank, ends[0], ends[1]) for rank in question.ranks]
    losses: dict[int, np.ndarray] = {}
    for seed in range(work.recipe.seed, work.recipe.seed + seeds):
        name = f"seed-{seed}"
        late = time.monotonic() - begun > 60 * question.minutes
        if late and len(losses) >= LEAST_SEEDS and not kept.has(name):
            say(f"note: {question.minutes:g} minutes are over; {len(losses)} of {seeds} seeds were run")
            break
        if not kept.has(name):
            console.print(f"ranks {_listed(question.ranks)}, seed {seed}: {work.steps} steps each", highlight=False)
        losses[seed] = kept.losses(name, partial(runs.of_ranks, question.ranks, rates, seed, work.rows.judged))
    answer = answer_of(question, work.parameters, rates, np.stack(list(losses.values()), axis=1))
    key = plain_rate_key(work.asked)
    answer = replace(answer, lora=lora, triplets=triplets, steps=work.steps, seeds=tuple(losses), rate_key=key)
    snippet = snippet_of(work.asked, answer)
    counts = {name: len(getattr(work.rows, name)) for name in ("train", "rates", "judged")}
    about = {"model": work.recipe.model.name, "data": dict(work.prepared.data.hashes), "examples": counts}
    write_json(folder / "suggestion.json", {**answer.record(), **about, "recipe": snippet.content})
    write_text(folder / "suggestion.yaml", snippet.text)
    draw_answer(answer, folder / "suggestion.png", f"{work.recipe.model.name}, {work.steps} steps")
    return replace(answer, snippet=snippet.text)


def _seeds_in_time(work: _Work, question: Question, runs: ShortRuns, kept: KeptParts, console: Console) -> int:
    """Say what the runs will take, and how many seeds fit into the time.

    Raises:
        TrainingError: not even the least of it does.

    """
    seeds = [f"seed-{work.recipe.seed + number}" for number in range(question.seeds)]
    missing = [name for name in seeds if not kept.has(name)]
    if not missing and kept.has("rates"):
        return question.seeds
    console.print(f"a few steps of rank {question.ranks[-1]}, to know what the short runs will take", highlight=False)
    runs.check(question.ranks[-1])
    cost = _cost(work, question, kept, runs.seconds_per_step(question.ranks[-1]))
    whole, limit, done = cost.seconds(work.steps, len(missing)) / 60, 60 * question.minutes, len(seeds) - len(missing)
    trainings = f"{len(missing) * len(question.ranks)} for the curve, {cost.first_runs:.0f} for learning rates"
    say(
        f"short runs: {trainings}; {work.steps} steps each: about {whole:.1f} minutes ({cost.step:.2f} s a step of one)"
    )
    fits = done + cost.seeds_within(limit, work.steps)
    if fits >= question.seeds:
        return question.seeds
    if fits < LEAST_SEEDS:
        least = LEAST_SEEDS - done
        needed, fitting = cost.seconds(work.steps, least) / 60, cost.steps_within(limit, least)
        shorter = f"lower --steps (about {fitting} would fit)" if fitting >= LEAST_STEPS else "give fewer --ranks"
        raise TrainingError(
            f"{question.minutes:g} minutes are too few: {LEAST_SEEDS} seeds take {needed:.0f} or so; "
            f"raise --minutes, or {shorter}"
        )
    say(f"note: {question.minutes:g} minutes are enough for {fits} seeds of {question.seeds}; raise --minutes for all")
    return fits


def _cost(work: _Work, question: Question, kept: KeptParts, second: float) -> Cost:
    train = work.recipe.train
    a_step = train.batch_size * train.gradient_accumulation
    rates, judged = (_JUDGING * second * len(rows) / a_step for rows in (work.rows.rates, work.rows.judged))
    plain = 0 if kept.has("rates") else 2 * len(question.factors)
    triplets = sum(not kept.has(f"triplets-{number}") for number in range(3)) if question.triplets else 0
    ranks = len(question.ranks)
    return Cost(second, plain + triplets, (plain + triplets) * rates, ranks, ranks * judged)


def _lora_rates(
    work: _Work, question: Question, runs: ShortRuns, kept: KeptParts, console: Console
) -> dict[int, TriedRates]:
    """Rates of the smallest and of the largest rank, all of them side by side."""
    own = work.recipe.train.learning_rate
    rates = sorted(factor * own for factor in question.factors)
    ranks = [rank for rank in (question.ranks[0], question.ranks[-1]) for _ in rates]
    if not kept.has("rates"):
        console.print(f"learning rates {_listed(rates)} at ranks {ranks[0]} and {ranks[-1]}", highlight=False)
    seed = work.recipe.seed + RATE_SEED
    losses = kept.losses("rates", lambda: runs.of_ranks(ranks, rates * 2, seed, work.rows.rates)).mean(1)
    count = len(rates)
    return {
        ranks[0]: TriedRates(tuple(rates), tuple(map(float, losses[:count]))),
        ranks[-1]: TriedRates(tuple(rates), tuple(map(float, losses[count:]))),
    }


def _triplet_rates(
    work: _Work, question: Question, runs: ShortRuns, kept: KeptParts, folder: Path, console: Console
) -> TriedRates:
    """Rates of triplets, one training after the other."""
    rank, centre = work.triplet_start
    seed, number = work.recipe.seed + RATE_SEED, iter(range(100))

    def loss_at(rate: float) -> float:
        name = f"triplets-{next(number)}"
        made = kept.losses(name, lambda: np.array(runs.of_triplets(rank, rate, seed, folder / "triplets", console)))
        return float(made)

    return search_rates([centre / 3, centre, centre * 3], loss_at)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)
