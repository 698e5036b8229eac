"""The picture that a user asks for of a plan's file: checked before it is drawn, and nothing is replaced unasked."""

from pathlib import Path

from lorank.allocation.cut_history import CutHistory
from lorank.artefact import check_file, check_unwritten, write_atomically
from lorank.errors import OutputError, PlanError
from lorank.plan import RankPlan
from lorank.report.cut_map import cuts_figure
from lorank.report.picture import picture_bytes, picture_format, plain_text
from lorank.report.rank_map import plan_title, rank_figure
from lorank.scores import ImportanceScores


def write_plan_picture(
    plan: RankPlan,
    picture: Path | None,
    *,
    scores: Path | None = None,
    cuts: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Draw a plan; the same picture again changes no file.

    Args:
        plan: to be drawn.
        picture: name of a PNG or SVG file.
        scores: file that the plan was made from: importance is drawn beside ranks.
        cuts: file of the cuts that left the plan's ranks: these are drawn before, after and over time.
        overwrite: replace another picture of that name.

    Raises:
        OutputError: no name, another ending, both kinds at once, or a file that is there and holds something else.
        PlanError: scores or cuts of another plan.
        ScoresError: no file of scores.

    """
    if picture is None:
        raise OutputError("scores and cuts are for a picture; give --picture, the name of a .png or .svg")
    form = picture_format(picture)
    check_file(picture)
    if scores is not None and cuts is not None:
        raise OutputError("scores and cuts make two pictures; give one of --scores and --cuts")
    history = None if cuts is None else CutHistory.load(cuts)
    if history is not None and dict(history.ranks) != dict(plan.ranks):
        raise PlanError(
            f"the last of the cuts in {cuts} did not leave the ranks of this plan; give those of the same run"
        )
    measured = None if scores is None else ImportanceScores.load(scores)
    with plain_text():
        figure = rank_figure(plan, measured) if history is None else cuts_figure(history, plan_title(plan))
        content = picture_bytes(figure, form)
    same = picture.is_file() and picture.read_bytes() == content
    check_unwritten(picture, same=same, overwrite=overwrite)
    if not same:
        write_atomically(picture, lambda temporary: temporary.write_bytes(content))
