"""AdaLoRA: smoothed sensitivity times its uncertainty, a cubic budget curve, pruned while it trains."""

from lorank.engine.options import TrainingBatchChoices
from lorank.methods.method import Method, Preset

ADALORA = Method(
    name="adalora",
    reference="Zhang et al., AdaLoRA, ICLR 2023, arXiv 2303.10512, eq. 4 to 14",
    choices=TrainingBatchChoices,
    presets={
        # PEFT's RankAllocator, step by step: new weights times the gradient of the step, every step, every entry.
        "paper": Preset(
            options={
                "estimator": "training-pass",
                "sign": "batch",
                "measured": "after-step",
                "state": "element",
                "every": 1,
                "window": 1,
                "score": "product",
                "lambda_score": "scored",
                "curve": "cubic",
                "budget_in": "ranks",
                "orthogonality": 0.1,
                "ending": "continue",
            },
            ranks={"rank_by": "score"},
        ),
        # Same score, from one number for each unit (its three sums are equal), in parameters.
        "recommended": Preset(
            options={
                "estimator": "training-pass",
                "sign": "batch",
                "measured": "before-step",
                "state": "triplet",
                "every": 1,
                "window": 1,
                "score": "product",
                "budget_in": "parameters",
                "ending": "continue",
            },
            ranks={"rank_by": "score"},
        ),
    },
    default_preset="paper",
)
