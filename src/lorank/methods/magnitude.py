"""Mean `|w|` of the frozen weights: a control that looks neither at data nor at the loss."""

from lorank.engine.options import RankOptions
from lorank.methods.method import FrozenModelChoices, Method

MAGNITUDE = Method(
    name="magnitude",
    reference="a control of ours",
    presets={"recommended": FrozenModelChoices(ranks=RankOptions(rank_by="score"))},
    default_preset="recommended",
    scored="modules",
    takes_experts=True,
    scorer="lorank.scoring.one_shot:magnitude_scores",
)
