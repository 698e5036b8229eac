"""`|w · g|` of the frozen weights, as GoRA scores modules; a one-shot scorer beside Sensitivity-LoRA."""

from lorank.methods.method import Method, Preset
from lorank.scoring.one_shot import gradient_scores

GRADIENT = Method(
    name="gradient",
    reference="GoRA, arXiv 2502.12171: the score alone, neither its initialisation nor its rank rule",
    presets={"recommended": Preset(ranks={"rank_by": "score"})},
    default_preset="recommended",
    scored="modules",
    options=("folds",),
    scorer=gradient_scores,
)
