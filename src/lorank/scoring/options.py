"""What can be chosen about the scores of a frozen model: a class of options for each scorer."""

from typing import Annotated, Literal

from pydantic import Field

from lorank.validation import Section

# Whose second derivatives an estimator's numbers are of, as users are told (docs/sensitivity-lora.md compares them).
HESSIAN_OF = {
    "gram": "each layer's own squared error, not the loss (preset paper: the loss; its ranks can be very different)",
    "fisher": "the loss, by squared gradients for the labels of the data (empirical Fisher)",
    "kfac": "the loss, by energies of inputs and of output gradients (K-FAC)",
    "hutchinson": "the loss itself, by random directions",
}


AtOnce = Annotated[int, Field(strict=True, ge=1)] | Literal["all"]


class CalibrationOptions(Section):
    """Measure: of the frozen model, on calibration examples. What a scorer lets a user choose is a class of its own."""


class FoldOptions(CalibrationOptions):
    """Measure: sums of parts of the calibration set."""

    folds: int = Field(8, ge=2, description="parts of the calibration set: for standard errors and stability")


class HessianOptions(FoldOptions):
    """Measure: global and local sensitivity from the Hessian's diagonal (docs/sensitivity-lora.md)."""

    estimator: Literal["gram", "fisher", "kfac", "hutchinson"] = Field("gram", description="of the Hessian's diagonal")
    trace_weight: float = Field(1.0, ge=0, description="exponent of the global metric, the trace")
    per_output: bool = Field(
        False, description="ours: the trace is divided by d_out, so that it does not grow with the outputs of a layer"
    )
    topk_weight: float = Field(0.5, ge=0, description="exponent of the local metric top-k share")
    effective_rank_weight: float = Field(0.5, ge=0, description="exponent of the local metric effective rank")
    topk: float = Field(0.1, gt=0, le=1, description="share of a layer's input columns that the top-k share is of")
    probes: int = Field(1, ge=1, description="random directions of every example, for estimator: hutchinson")
    modules_at_once: AtOnce = Field(
        1,
        description="estimator hutchinson: neighbouring modules whose second derivative is taken at once, or `all`; more cost "
        "less, and carry the curvature between them as noise",
    )


class InputVarianceOptions(CalibrationOptions):
    """Measure: how much of the variance of its inputs each principal direction of a layer explains (EVA)."""

    components: int = Field(16, ge=1, description="principal inputs of every module; no module gets more rank")
