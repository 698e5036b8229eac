"""EVA: explained variance of layer inputs decides the ranks, and their principal directions where `A` starts. A baseline."""

from lorank.engine.options import RankOptions
from lorank.methods.method import FrozenModelChoices, Method
from lorank.scoring.options import InputVarianceOptions

EVA = Method(
    name="eva",
    reference="EVA, arXiv 2410.07170; PEFT's init_lora_weights='eva'",
    presets={
        "recommended": FrozenModelChoices(
            measure=InputVarianceOptions(), ranks=RankOptions(rank_by="score", scope="global")
        )
    },
    default_preset="recommended",
    scorer="lorank.scoring.eva:explained_variance_scores",
    start="lorank.scoring.eva:start_at_principal_inputs",
)
