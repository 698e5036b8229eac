"""How long a search is where a recipe says what it may cost, and not how many steps it has."""

from typing import Any

from lorank.engine.options import GROWTH_ON_SCORING_SET, comparisons
from lorank.recipe.sections import TrainingSection

LEAST_STEPS = 10  # with fewer the scores say nothing, whatever they cost


def search_steps(search: TrainingSection, train: TrainingSection, measure: Any, share: float, train_steps: int) -> int:
    """The most optimizer steps of a search that cost, with scoring, no more than `share` of what `train` costs.

    Counted are forward and backward passes of an example. With B examples in a step of the search, b in a scoring batch, and
    scores at every `every`-th step after the first `warmup` of them, s steps cost `s B + (n + ⌊log₂ n⌋ + 1) b`, where
    `n = (1 - warmup) s / every` scoring batches are scored, and the 1st, 2nd, 4th, 8th ... of them costs a check of the loss.
    With `share` 0.3, `warmup` 0.5 and batches of one size that is nearly a fifth of the steps of `train`: 0.2 + 0.1 of its
    passes, so that the whole run costs at most 1.3 times that of LoRA. It is not below 10 steps, and not above those of `train`.

    Args:
        search: the stage, with its batch size.
        train: the stage whose adapter is served.
        measure: section of the scores, with `warmup`, `every`, `when` and `scoring_batch_size` where there is a scoring set.
            The one pass of `when: after` is not counted.
        share: of what `train` costs.
        train_steps: optimizer steps of `train`.

    """
    allowed = share * train_steps * _batch(train)
    steps = int(allowed / _step_cost(search, measure))
    while steps > LEAST_STEPS and _cost(steps, search, measure) > allowed:
        steps -= 1
    return min(max(steps, LEAST_STEPS), train_steps)


def search_epochs(search: TrainingSection, train: TrainingSection, measure: Any, share: float) -> float:
    """About the same in epochs, where the number of examples is not known yet."""
    return min(1.0, share * _batch(search) / _step_cost(search, measure)) * train.epochs


def _batch(stage: TrainingSection) -> int:
    return stage.batch_size * stage.gradient_accumulation


def _step_cost(search: TrainingSection, measure: Any) -> float:
    """Examples that a step takes, those of its share of the scoring batches included."""
    if getattr(measure, "when", "after") == "after":
        return _batch(search)
    return _batch(search) + (1 - measure.warmup) / measure.every * _scored_at_once(search, measure)


def _cost(steps: int, search: TrainingSection, measure: Any) -> int:
    if getattr(measure, "when", "after") == "after":
        return steps * _batch(search)
    scored = (steps - int(measure.warmup * steps)) // measure.every
    return steps * _batch(search) + (scored + comparisons(scored, GROWTH_ON_SCORING_SET)) * _scored_at_once(
        search, measure
    )


def _scored_at_once(search: TrainingSection, measure: Any) -> int:
    return getattr(measure, "scoring_batch_size", None) or search.batch_size
