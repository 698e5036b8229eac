"""Mean `|w|` of the frozen weights: a control that looks neither at data nor at the loss."""

from lorank.methods.method import Method, Preset
from lorank.scoring.one_shot import magnitude_scores

MAGNITUDE = Method(
    name="magnitude",
    reference="a control of ours",
    presets={"recommended": Preset(ranks={"rank_by": "score"})},
    default_preset="recommended",
    scored="modules",
    scorer=magnitude_scores,
)
