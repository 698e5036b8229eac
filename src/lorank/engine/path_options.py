"""What can be chosen about scores. The letters A1 to A15 are the open readings of I-LoRA's text (docs/i-lora.md)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorank.engine.quadrature import NodeRule


class PathScoreOptions(BaseModel):
    """Which number a unit of rank gets on one scoring batch, and how batches are put together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: NodeRule = Field(
        "paper", description="path coefficients: paper {1/N..1}, midpoint, trapezoid, gradient (α = 1)"
    )
    intervals: int = Field(10, ge=1, description="N, the number of intervals of the path")
    draw: Literal["random", "sweep"] = Field(
        "random", description="one random α for each scoring batch, or every α on each"
    )
    moved: Literal["lambda", "all"] = Field("lambda", description="A2: the path moves λ alone, or P, λ and Q")
    baseline: Literal["zero", "initial"] = Field("zero", description="A1: where the path starts")
    path_scope: Literal["global", "module"] = Field("global", description="move all modules together, or one at a time")
    parameter_factor: Literal["none", "absolute", "signed"] = Field(
        "none",
        description="A3: |g| (eq. 4), |θ·∫g| (integrated gradients), or each unit's signed share of the loss reduction",
    )
    granularity: Literal["triplet", "module"] = Field("triplet", description="A4: what is scored as one")
    vector_reduction: Literal["mean", "sum"] = Field("mean", description="A5: mean over a vector's entries, or raw L1")
    accumulate: Literal["mean", "sum", "ema", "last"] = Field("mean", description="A7: how scoring batches add up")
    ema_decay: float = Field(0.85, gt=0, lt=1, description="decay of accumulate: ema")
    dropout: bool = Field(False, description="A14: keep dropout on while scoring")
