"""Whether stages can be as long as a recipe says: evaluations that end them, and streams, which have no length."""

from lorank.recipe.sections import SearchSection, TrainingSection
from lorank.tasks.section import DataSection

OF_TRAIN = ("eval_every", "patience")  # a search is not evaluated: it is as long as it is


def problems_of_lengths(
    data: DataSection, train: TrainingSection, search: SearchSection | None, *, cuts: str | None
) -> list[str]:
    """What is wrong, a line each.

    Args:
        data: of the recipe.
        train: the stage whose adapter is served.
        search: the stage before it.
        cuts: name of the method where it cuts ranks in `train`.

    """
    own = set() if search is None else search.model_fields_set
    problems = [
        f"search.{key}: only train is evaluated while it trains; leave it out" for key in OF_TRAIN if key in own
    ]
    if data.eval is None:
        more = "give data.eval, a file or a share of the training rows, or leave it out"
        given = [key for key in OF_TRAIN if getattr(train, key) is not None]
        problems += [f"train.{key}: there is nothing to evaluate on; {more}" for key in given]
    elif train.patience is not None and cuts is not None:
        problems.append(
            f"train.patience: {cuts} cuts ranks while it trains, by the length of the stage, and cannot end early; "
            "set it to null there"
        )
    if data.stream and train.max_steps is None:
        problems.append(
            "train.max_steps: a stream (data.stream) has no length; say how many optimizer steps are trained"
        )
    if data.stream and "epochs" in own:
        problems.append("search.epochs: a stream (data.stream) has no length; give search.max_steps or search.share")
    return problems
