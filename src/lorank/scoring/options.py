"""What can be chosen about the scores of a frozen model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CalibrationOptions(BaseModel):
    """How modules are scored before training, in one pass over calibration examples (docs/sensitivity-lora.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    estimator: Literal["gram", "fisher", "kfac", "hutchinson"] = Field(
        "gram", description="of the Hessian's diagonal, for sensitivity-lora"
    )
    trace_weight: float = Field(1.0, ge=0, description="exponent of the global metric, the trace")
    topk_weight: float = Field(0.5, ge=0, description="exponent of the local metric top-k share")
    effective_rank_weight: float = Field(0.5, ge=0, description="exponent of the local metric effective rank")
    topk: float = Field(0.1, gt=0, le=1, description="share of a layer's input columns that the top-k share is of")
    folds: int = Field(8, ge=2, description="parts of the calibration set: for standard errors and stability")
    probes: int = Field(1, ge=1, description="random directions of every example, for estimator: hutchinson")
    components: int = Field(16, ge=1, description="principal inputs of every module, for eva; no module gets more rank")
