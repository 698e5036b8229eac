"""IGU-LoRA: integrated gradients of the adapter's parameters with EMA uncertainty, pruned while it trains."""

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

# The text as far as it is known. Eq. 6 as printed: its three nodes and weights, |w|
# outside of a signed bracket. M is an epoch. β, the budget curve and the share of the run are not in the text:
# β and the cubic curve are the code's, "epoch 2 to 5, every 1/5 epoch" is read as those of ten epochs.
_PAPER = TrainingBatchChoices(
    measure=TrainingBatchOptions(
        estimator="one-sample", intervals=20, moved="lambda", path_scope="global", sign="gradient", every=1
    ),
    smooth=DeviationOptions(state="element", window="epoch", score="ratio", lambda_score="absolute"),
    cut=CurveOptions(budget_in="ranks", begin=0.2, end=0.5, interval=0.02),
    ranks=RankOptions(rank_by="score"),
    start=StartOptions(factors="kept"),
)

IGU_LORA = Method(
    name="igu-lora",
    reference="IGU-LoRA, arXiv 2603.13792 (ICLR 2026), eq. 3 to 11; code github.com/withyou12/igulora",
    presets={
        "paper": _PAPER,
        # What the released code does, in the proportions of its script of 10.5k steps.
        "official": TrainingBatchChoices(
            triplets=TripletOptions(
                train_on_path=True, orthogonality=1.0, orthogonality_of="off-diagonal", initial_lambda=0.1
            ),
            measure=TrainingBatchOptions(
                estimator="training-pass", intervals=20, moved="all", sign="batch", measured="after-step", every=1
            ),
            smooth=DeviationOptions(state="element", window=1, score="smoothed-ratio", lambda_score="scored"),
            cut=CurveOptions(
                budget_in="ranks", cost_weights="official", fill=False, begin=0.01, end=0.43, interval=0.005
            ),
            ranks=RankOptions(rank_by="score"),
            start=StartOptions(factors="fresh"),
        ),
        # `paper` with the estimate that theorem 1 is about: eq. 4 by the whole sum of eq. 5, averaged over the M mini-batches of
        # an epoch, and then |·|. N is chosen for `tolerance`. N + 1 passes for each scored mini-batch, so not at every step.
        "trapezoid": _PAPER.model_copy(
            update={
                "measure": TrainingBatchOptions(
                    estimator="trapezoid",
                    intervals="auto",
                    moved="lambda",
                    path_scope="global",
                    sign="window",
                    every=10,
                )
            }
        ),
        # The abstract's "within-layer": `paper`, but each layer moves along the path alone, and the others stay as they are
        # trained. Three passes for each layer, so not at every step.
        "within-layer": _PAPER.model_copy(
            update={"measure": _PAPER.measure.model_copy(update={"path_scope": "layer", "every": 10})}
        ),
        # Ours: an unbiased estimate of the integral from one extra pass every tenth step, which keeps its magnitude; a
        # unit's worth is per parameter, because parameters are what the budget counts.
        "recommended": TrainingBatchChoices(
            measure=TrainingBatchOptions(estimator="single-pass", moved="lambda", sign="batch", every=10),
            smooth=DeviationOptions(state="triplet", window=1, score="mean", lambda_score="scored"),
            cut=CurveOptions(budget_in="parameters"),
            ranks=RankOptions(rank_by="score-per-parameter"),
            start=StartOptions(factors="kept"),
        ),
    },
    default_preset="recommended",
)
