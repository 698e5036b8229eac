"""What a comparison says, in plain sentences: what is claimed, what is not shown, and how many seeds it would take."""

import math
from collections.abc import Sequence

from lorank.compare.answer import Contrast, Row
from lorank.compare.example_pairs import LossDifference
from lorank.compare.statistics import Difference

# What methods are tested against beside uniform LoRA.
AGAINST = {
    "shuffled": "its own plan, shuffled",
    "svd-truncate": "an adapter cut by singular values",
    "uniform-triplets": "triplets that end at the uniform rank",
}
UNIFORM = "uniform LoRA"


def sentence(one: Row | Contrast, level: float = 0.05) -> str:
    """What can be said of a method against uniform LoRA, or against one of its controls."""
    where = f"{one.task}, budget {one.budget}: {one.method}"
    difference, other = one.difference, AGAINST[one.control] if isinstance(one, Contrast) else UNIFORM
    uncut = math.nan if isinstance(one, Contrast) else one.uncut
    before = "" if math.isnan(uncut) else f"; before it was cut {uncut:.4f}"
    if difference is None:
        return f"{where} is what the others are compared with" + (
            f" ({one.metric} {one.mean:.4f})." if isinstance(one, Row) else "."
        )
    size = f"{difference.mean:+.4f} {one.metric} (bootstrap interval {difference.low:+.4f} to {difference.high:+.4f})"
    return in_words(where, other, difference, size, asked=one.asked, level=level, more=before)


def in_words(
    where: str, other: str, difference: Difference, size: str, *, asked: int, level: float = 0.05, more: str = ""
) -> str:
    """What can be said of a difference: better, worse, equal within a bound, or not shown.

    Args:
        where: what is compared, with where it was measured.
        other: what it is compared with.
        difference: after Holm's correction.
        size: of the difference, with its interval.
        asked: seeds of the grid.
        level: of the claims.
        more: behind it.

    """
    if difference.pairs < 2:
        return f"{where} cannot be compared: {_seeds(difference.pairs)} in common with {other}{more}."
    shown = f"p = {difference.holm:.2g} after Holm's correction, {_seeds(difference.pairs)}"
    if difference.pairs < asked:
        # A method that fails now and then must not look better for it.
        shown += f" ({asked - difference.pairs} of {asked} have no value and are left out)"
    within = "" if difference.within is None else f"{difference.within:g}"
    by_tost = f"p = {difference.holm_equal:.2g} by two one-sided tests after Holm's correction"
    equal = difference.equal(level)
    if claim := difference.claim(level):
        also = f"; the difference is less than {within} ({by_tost})" if equal else ""
        return f"{where} is {'better' if claim > 0 else 'worse'} than {other} by {size}; {shown}{also}{more}."
    if difference.holm < level:
        return f"{where}: the mean and the ranks of the differences to {other} point to different sides: {size}; {shown}{more}."
    if equal:
        seeds = shown.removeprefix(f"p = {difference.holm:.2g} after Holm's correction, ")
        return f"{where} is equal to {other} within {within}: {size}; {by_tost}, {seeds}{more}."
    unequal = f"; equality within {within} is not shown either ({by_tost})" if within else ""
    if difference.mean == 0:
        return f"{where} is not shown to differ from {other}: the mean difference is 0; {shown}{unequal}{more}."
    needed = (
        "not even 1,000 seeds would show a difference of this size"
        if difference.seeds_needed is None
        else f"about {difference.seeds_needed} seeds would show a difference of this size"
    )
    return f"{where} is not shown to differ from {other}: {size}; {shown}; {needed}{unequal}{more}."


def loss_sentences(found: Sequence[Row | Contrast], level: float = 0.05) -> list[str]:
    """What can be said of the test losses of examples: a sentence for each claim, and one for all that is not shown on a task."""
    said, not_shown = list[str](), dict[tuple[str, str, bool], list[str]]()
    for one in found:
        if one.losses is None:
            continue
        claimed = one.losses.claim(level)
        if claimed or math.isnan(one.losses.p):
            said.append(_loss_sentence(one, one.losses, claimed))
            continue
        control = AGAINST[one.control] if isinstance(one, Contrast) else ""
        name = f"{one.method} and {control}" if control else one.method
        not_shown.setdefault((one.task, one.budget, bool(control)), []).append(name)
    for (task, budget, controls), names in not_shown.items():
        what = (
            "test losses of these pairs are not"
            if controls
            else f"test losses that are not shown to differ from {UNIFORM}'s"
        )
        said.append(f"{task}, budget {budget}: {what}{' shown to differ' if controls else ''}: {'; '.join(names)}.")
    return said


def _loss_sentence(one: Row | Contrast, found: LossDifference, claimed: int) -> str:
    where, other = f"{one.task}, budget {one.budget}: the test loss of {one.method}", UNIFORM
    if isinstance(one, Contrast):
        other = AGAINST[one.control]
    if not claimed:
        return f"{where} cannot be compared by example: {_seeds(found.seeds)} with losses of {found.examples} examples."
    size = f"{found.mean:+.4f} (interval {found.low:+.4f} to {found.high:+.4f})"
    shown = f"p = {found.holm:.2g} after Holm's correction, {_seeds(found.seeds)} x {found.examples:,} examples"
    return f"{where} is {'lower' if claimed > 0 else 'higher'} than that of {other} by {size}; {shown}."


def general_sentences(rows: Sequence[Row]) -> list[str]:
    """For each task with a general text: the base model's loss on it; the changes are in the table."""
    base = {row.task: row.base_loss for row in rows if not math.isnan(row.base_loss)}
    return [
        f"{task}: the base model's loss on the general text is {loss:.4f} a token; the table shows how much training raises it."
        for task, loss in base.items()
    ]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
