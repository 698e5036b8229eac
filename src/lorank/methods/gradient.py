"""`|w · g|` of the frozen weights, as GoRA scores modules; a one-shot scorer beside Sensitivity-LoRA."""

from lorank.engine.options import RankOptions
from lorank.methods.method import FrozenModelChoices, Method
from lorank.scoring.options import FoldOptions

GRADIENT = Method(
    name="gradient",
    reference="GoRA, arXiv 2502.12171: the score alone, neither its initialisation nor its rank rule",
    presets={"recommended": FrozenModelChoices(measure=FoldOptions(), ranks=RankOptions(rank_by="score"))},
    default_preset="recommended",
    scored="modules",
    takes_experts=True,
    scorer="lorank.scoring.one_shot:gradient_scores",
)
