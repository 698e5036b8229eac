"""AdaLoRA: smoothed sensitivity times its uncertainty, a cubic budget curve, pruned while it trains."""

from lorank.engine.options import (
    CurveOptions,
    DeviationOptions,
    RankOptions,
    StartOptions,
    TrainingBatchChoices,
    TrainingBatchOptions,
    TripletOptions,
)
from lorank.methods.method import Method

ADALORA = Method(
    name="adalora",
    reference="Zhang et al., AdaLoRA, ICLR 2023, arXiv 2303.10512, eq. 4 to 14",
    presets={
        # PEFT's RankAllocator, step by step: new weights times the gradient of the step, every step, every entry.
        "paper": TrainingBatchChoices(
            triplets=TripletOptions(orthogonality=0.1),
            measure=TrainingBatchOptions(estimator="training-pass", sign="batch", measured="after-step", every=1),
            smooth=DeviationOptions(state="element", window=1, score="product", lambda_score="scored"),
            cut=CurveOptions(curve="cubic", budget_in="ranks"),
            ranks=RankOptions(rank_by="score"),
            start=StartOptions(factors="kept"),
        ),
        # Same score, from one number for each unit (its three sums are equal), in parameters.
        "recommended": TrainingBatchChoices(
            measure=TrainingBatchOptions(estimator="training-pass", sign="batch", measured="before-step", every=1),
            smooth=DeviationOptions(state="triplet", window=1, score="product"),
            cut=CurveOptions(budget_in="parameters"),
            ranks=RankOptions(rank_by="score"),
            start=StartOptions(factors="kept"),
        ),
    },
    default_preset="paper",
)
