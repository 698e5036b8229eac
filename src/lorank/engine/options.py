"""What can be chosen about allocation during training: the estimator, the smoothing, the curve, the end."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorank.allocation.schedule import Curve
from lorank.engine.estimators import Estimator
from lorank.engine.smoothing import ScoreKind

Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Steps = Annotated[int, Field(strict=True, ge=0)]


class PruningOptions(BaseModel):
    """How units of rank are scored and cut while they train. Shares of the run are floats, steps are whole numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    estimator: Estimator = Field(
        "single-pass", description="of w·∫g(αw)dα, with 0, 1, 3, 3 or N+1 extra passes for each scored mini-batch"
    )
    intervals: Annotated[int, Field(ge=2)] | Literal["auto"] = Field(
        20, description="N of the path; auto picks it for `tolerance` by the trapezoid's N^-2 law"
    )
    tolerance: float = Field(0.01, gt=0, lt=1, description="relative quadrature error that `intervals: auto` aims at")
    moved: Literal["lambda", "all"] = Field(
        "lambda", description="the path moves λ alone (dW(α) = α dW), or P, λ and Q"
    )
    path_scope: Literal["global", "layer"] = Field(
        "global", description="move all layers together, or one at a time (passes times layers)"
    )
    train_on_path: bool = Field(
        False,
        description="training passes too at a random α of {1/N..1}: the output is scaled by α^3 (IGU-LoRA's code)",
    )
    sign: Literal["batch", "window", "gradient", "loss-reduction"] = Field(
        "batch", description="|w∫g| of a mini-batch, or of a window's mean; |w|∫g as eq. 6 is printed; or -w∫g"
    )
    measured: Literal["before-step", "after-step"] = Field(
        "before-step",
        description="training-pass: weights and task gradient of one moment, or new weights and a gradient with regulariser",
    )
    state: Literal["element", "triplet"] = Field(
        "triplet", description="smooth every entry (the papers), or one number for each unit of rank"
    )
    every: int = Field(10, ge=1, description="score one mini-batch every this many optimizer steps")
    window: Steps | Share | Literal["epoch"] = Field(
        1, description="M: scored mini-batches (or share of the run, or an epoch) averaged before the EMAs take a step"
    )
    mean_decay: float = Field(0.85, ge=0, lt=1, description="β1 of the EMA mean")
    deviation_decay: float = Field(0.85, ge=0, lt=1, description="β2 of the EMA deviation")
    score: ScoreKind = Field("mean", description="what EMA mean and deviation become")
    epsilon: float = Field(1e-6, gt=0, description="of the ratios")
    ucb_weight: float = Field(1.0, ge=0, description="c of ucb: mean + c deviation")
    lambda_score: Literal["scored", "absolute"] = Field(
        "scored", description="λ counts like P and Q, or as |λ| (IGU-LoRA)"
    )
    curve: Curve = Field("cubic", description="how the budget falls from `begin` to `end`")
    budget_in: Literal["parameters", "ranks"] = Field("parameters", description="what the curve counts")
    cost_weights: Mapping[str, float] = Field(
        {}, description="budget_in ranks: cost of a unit by end of the module's name, others 1 (IGU-LoRA's code)"
    )
    fill: bool = Field(True, description="after the first unit that does not fit, go on to cheaper ones")
    begin: Steps | Share = Field(0.1, description="no cut before")
    end: Steps | Share = Field(0.6, description="the last cut; ranks stand from here on")
    interval: Steps | Share = Field(0.01, description="between cuts")
    shrink: Literal["last", "every"] = Field(
        "last", description="tensors shrink at the last cut, before it cut triplets may return; or at every cut"
    )
    orthogonality: float = Field(0.1, ge=0, description="γ: weight of the regulariser, never in any loss")
    orthogonality_of: Literal["identity", "off-diagonal"] = Field(
        "identity", description="PᵀP - I, or only its off-diagonal part (IGU-LoRA's code)"
    )
    initial_lambda: float = Field(0.0, description="λ of fresh triplets")
    ending: Literal["continue", "retrain"] = Field(
        "continue", description="keep the trained factors, or train the plan from a fresh start"
    )

    @model_validator(mode="after")
    def _choices_agree(self) -> "PruningOptions":
        if self.cost_weights and self.budget_in != "ranks":
            raise ValueError("cost_weights are for budget_in: ranks; a budget in parameters knows what a unit costs")
        if any(weight <= 0 for weight in self.cost_weights.values()):
            raise ValueError("cost_weights must be above zero")
        if not self.fill and self.budget_in != "ranks":
            raise ValueError("fill: false is for budget_in: ranks; a budget in parameters is spent as far as units fit")
        if isinstance(self.begin, float) and isinstance(self.end, float) and self.begin >= self.end:
            raise ValueError(f"begin {self.begin} is not before end {self.end}")
        if self.interval in (0, 0.0):
            raise ValueError("interval is 0; it takes at least one step")
        if self.window in (0, 0.0):
            raise ValueError("window is 0; it takes at least one mini-batch")
        return self
