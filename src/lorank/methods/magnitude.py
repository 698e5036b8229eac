"""Mean `|w|` of the frozen weights: a control that looks neither at data nor at the loss."""

from lorank.methods.method import Method
from lorank.scoring.one_shot import magnitude_scores

MAGNITUDE = Method(
    name="magnitude",
    reference="a control of ours",
    trained="nothing",
    presets={"recommended": {"allocation": {"rank_by": "score"}}},
    default_preset="recommended",
    scored="modules",
    scorer=magnitude_scores,
)
