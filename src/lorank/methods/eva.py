"""EVA: explained variance of layer inputs decides the ranks, and their principal directions where `A` starts. A baseline."""

from lorank.methods.method import Method, Preset
from lorank.scoring.eva import explained_variance_scores, start_at_principal_inputs

EVA = Method(
    name="eva",
    reference="EVA, arXiv 2410.07170; PEFT's init_lora_weights='eva'",
    presets={"recommended": Preset(ranks={"rank_by": "score", "scope": "global"})},
    default_preset="recommended",
    options=("components",),
    scorer=explained_variance_scores,
    start=start_at_principal_inputs,
)
