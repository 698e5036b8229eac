"""Sensitivity-LoRA: global and local sensitivity from the Hessian's diagonal, once, before training."""

from lorank.engine.options import RankOptions
from lorank.methods.method import FrozenModelChoices, Method
from lorank.scoring.options import HessianOptions

SENSITIVITY_LORA = Method(
    name="sensitivity-lora",
    reference="Sensitivity-LoRA, arXiv 2509.09119 (Findings of EMNLP 2025)",
    # The trace and proportional ranks are the paper's; the estimator, the forms of the two local metrics and how they are
    # combined are not in any source and are ours, named here so that a run records them. `gram` because it
    # is the cheapest, the most stable, and does not look through a new head (docs/sensitivity-lora.md has the comparison).
    #
    # `per-output` is `recommended` with two changes of ours: the trace is divided by the outputs of a layer, and ranks stay
    # between half and twice the mean. In worlds whose right ranks are known it does less harm (docs/where-ranks-matter.md).
    #
    # `paper` takes the Hessian of the loss, as the abstract says (second derivatives of the loss function). Its estimator is
    # `fisher`, squared gradients of single examples: it cannot be negative, has no noise of its own and costs one pass
    # backward. It is not the Hessian in two respects: labels are those of the data, where the generalised Gauss-Newton
    # matrix has those that the model itself predicts; and the second term of the Hessian, the loss's first derivatives by
    # the outputs times the outputs' second ones, is left out. Both differences are zero in expectation where the model
    # predicts the labels' distribution. `estimator: hutchinson` over this preset leaves nothing out.
    presets={
        "paper": FrozenModelChoices(
            measure=HessianOptions(
                estimator="fisher", trace_weight=1.0, topk_weight=0.5, effective_rank_weight=0.5, topk=0.1
            ),
            ranks=RankOptions(rank_by="score"),
        ),
        "recommended": FrozenModelChoices(
            measure=HessianOptions(
                estimator="gram", trace_weight=1.0, topk_weight=0.5, effective_rank_weight=0.5, topk=0.1
            ),
            ranks=RankOptions(rank_by="score"),
        ),
        "per-output": FrozenModelChoices(
            measure=HessianOptions(
                estimator="gram",
                trace_weight=1.0,
                per_output=True,
                topk_weight=0.5,
                effective_rank_weight=0.5,
                topk=0.1,
            ),
            ranks=RankOptions(rank_by="score", within=2.0),
        ),
    },
    default_preset="per-output",
    earlier_default="recommended",
    scored="modules",
    takes_experts=True,
    scorer="lorank.scoring.one_shot:sensitivity_scores",
)
