"""Plans that methods learn, on a seed that no plan is judged on: AdaLoRA's, and those of a short search."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorank.errors import LorankError, one_line
from lorank.headroom.plans import same_ranks
from lorank.plan import RankPlan
from lorank.recipe.learning_rates import own_rate, triplet_rate
from lorank.recipe.method_sections import inherited
from lorank.recipe.recipe import Recipe
from lorank.runs.checks import check_model
from lorank.runs.choices import allocation_stage
from lorank.runs.defaults import fit_to_data
from lorank.runs.method_run import MethodRun
from lorank.training.prepared import Prepared
from lorank.training.steps import stage_steps

_SEED_OF_PLANS = 1_000_000  # added to the recipe's; seeds that plans are judged on are fewer
_SHARE_OF_SEARCH = 0.2
_RATE_OF_TRIPLETS = 2.0  # times the rate of LoRA factors, where a recipe gives triplets none
# Name of a plan -> the method that learns it.
LEARNED = {"adalora": "adalora", "search": "i-lora"}


def recipe_of_headroom(recipe: Recipe, examples: int) -> Recipe:
    """The recipe that headroom carries out: uniform ranks, with AdaLoRA and a short search of I-LoRA beside it.

    Model, data, budget, targets and seed are the recipe's, and `train` is that of plain LoRA in it (`baselines.lora` may have its
    own). The search has a fifth of its steps. Triplets train at the rate that the recipe gives them (`triplet_rate`), or else at
    twice that of plain LoRA; AdaLoRA at that of `baselines.adalora` where it has one.

    Args:
        recipe: of any method.
        examples: that plans train on.

    """
    plain, rate = recipe.of("lora"), triplet_rate(recipe, _RATE_OF_TRIPLETS)
    steps = max(1, round(_SHARE_OF_SEARCH * stage_steps(plain.train, examples)))
    adalora = {
        "preset": "paper",
        "cut": {"budget_in": "parameters", "fill": True, "cost_weights": {}},
        "train": {"learning_rate": own_rate(recipe, "adalora") or rate},
    }
    i_lora = {"preset": "loss-per-parameter", "search": {"max_steps": steps, "learning_rate": rate}}
    kept = plain.model_dump(exclude_unset=True, exclude={"search", "baselines", "start"})
    return Recipe(**inherited(kept, "lora", {}), baselines={"adalora": adalora, "i-lora": i_lora})


def learned_plans(
    recipe: Recipe,
    prepared: Prepared,
    budget: int,
    folder: Path,
    console: Console,
    others: Mapping[str, RankPlan],
) -> tuple[dict[str, RankPlan], dict[str, str]]:
    """Learn the plans, or read them back.

    Args:
        recipe: of `recipe_of_headroom`.
        prepared: its training part holds none of the examples that plans are judged on.
        budget: in parameters.
        folder: a folder for each method goes below it.
        console: for lines of progress.
        others: plans that are tried already.

    Returns:
        Name -> plan; and of those left out: name -> why.

    """
    plans, left_out = dict[str, RankPlan](), dict[str, str]()
    for name, method in LEARNED.items():
        try:
            plan = _learned(recipe, prepared, method, budget, folder / name, console)
        except LorankError as error:
            left_out[name] = one_line(error)
            continue
        if twin := same_ranks(plan, {**others, **plans}):
            left_out[name] = f"it has the ranks of {twin}"
        else:
            plans[name] = plan
    return plans, left_out


def _learned(recipe: Recipe, prepared: Prepared, method: str, budget: int, folder: Path, console: Console) -> RankPlan:
    own = recipe.of(method)
    seed = (recipe.seed + _SEED_OF_PLANS) % 2**32
    own = own.model_copy(update={"budget": str(budget), "seed": seed, "report_to": "none"})
    own = fit_to_data(own, prepared.data, (method,), _say(console))
    check_model(own, (method,))
    allocation_stage(own, prepared.data).check_schedule()
    settings: Any = replace(prepared.settings, seed=seed)
    run = MethodRun(own, replace(prepared, settings=settings), method, folder, console)
    run.allocate_in_training()
    return run.plan(run.scores())


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(f"note: {line}", highlight=False, soft_wrap=True)
