"""The six choices of a method that allocates ranks while adapters train, each a class of options of its own.

`TrainingBatchChoices` and `ScoringSetChoices` are the two sets of choices that there are: a method whose measure looks at the
batches that are trained on (IGU-LoRA, AdaLoRA), and one whose measure looks at a scoring set (I-LoRA). The letters A1 to A15
are the open readings of I-LoRA's text (docs/i-lora.md).
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lorank.allocation.schedule import Curve
from lorank.allocation.top_b import RankBy, Scope
from lorank.validation import Section

Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Steps = Annotated[int, Field(strict=True, ge=0)]
Estimator = Literal["training-pass", "single-pass", "one-sample", "unbiased", "trapezoid"]
NodeRule = Literal["paper", "midpoint", "trapezoid", "gradient"]
ScoreKind = Literal["product", "ratio", "smoothed-ratio", "mean", "ucb"]
Accumulation = Literal["mean", "sum", "ema", "last"]


class TripletOptions(Section):
    """Triplets: where they start, what keeps them orthonormal, and at which point of the path they train."""

    initial_lambda: float = Field(0.0, description="λ of fresh triplets")
    orthogonality: float = Field(0.1, ge=0, description="A15, γ: weight of the regulariser, never in any loss")
    orthogonality_of: Literal["identity", "off-diagonal"] = Field(
        "identity", description="PᵀP - I, or only its off-diagonal part (IGU-LoRA's code)"
    )
    orthogonality_added: Literal["before-clipping", "after-clipping"] = Field(
        "before-clipping",
        description="the regulariser's gradient is clipped with the loss's, as a part of the loss would be (AdaLoRA, eq. 4); or "
        "it is added to clipped gradients",
    )
    train_on_path: bool = Field(
        False,
        description="A11: training passes too at a random α of {1/N..1}: the output is scaled by α, or by α^3 where P, λ and Q "
        "move (IGU-LoRA's code)",
    )


class TrainingBatchOptions(Section):
    """Measure: `w·∫g` on batches that are trained on. Every number is of one mini-batch."""

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
    sign: Literal["batch", "window", "gradient", "loss-reduction"] = Field(
        "batch", description="|w∫g| of a mini-batch, or of a window's mean; |w|∫g as eq. 6 is printed; or -w∫g"
    )
    measured: Literal["before-step", "after-step"] = Field(
        "before-step",
        description="training-pass: weights and task gradient of one moment, or new weights and a gradient with regulariser",
    )
    every: int = Field(10, ge=1, description="score one mini-batch every this many optimizer steps")


class PathScoreOptions(Section):
    """Which number a unit of rank gets on one batch of a scoring set."""

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
    dropout: bool = Field(False, description="A14: keep dropout on while scoring")


class ScoringSetOptions(PathScoreOptions):
    """Measure: path gradients on a scoring set, one of its batches every few steps."""

    source: Literal["held-out", "training"] = Field(
        "held-out", description="A10: own part of the training data, or the training data itself (ablation)"
    )
    when: Literal["during", "after"] = Field("during", description="A12: while triplets train, or one pass after that")
    every: int = Field(1, ge=1, description="A12: score one batch every this many optimizer steps")
    warmup: float = Field(0.1, ge=0, lt=1, description="A12: share of that training before scores count")
    scoring_batch_size: int | None = Field(
        None, ge=1, description="examples in a scoring batch where scoring_data is rows; None: as in training"
    )


class DeviationOptions(Section):
    """Smooth: EMAs of the mean and of the deviation, of single entries or of units, and the score made of both."""

    state: Literal["element", "triplet"] = Field(
        "triplet", description="smooth every entry (the papers), or one number for each unit of rank"
    )
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

    @model_validator(mode="after")
    def _window_is_one(self) -> "DeviationOptions":
        if self.window in (0, 0.0):
            raise ValueError("window is 0; it takes at least one mini-batch")
        return self


class RunningOptions(Section):
    """Smooth: a running statistic of the scores of whole units, with its standard error."""

    accumulate: Accumulation = Field("mean", description="A7: how scoring batches add up")
    ema_decay: float = Field(0.85, gt=0, lt=1, description="decay of accumulate: ema")


class CurveOptions(Section):
    """Cut: a budget that falls along a curve; what it counts, and what of a module is cut at once."""

    curve: Curve = Field("cubic", description="how the budget falls from `begin` to `end`")
    budget_in: Literal["parameters", "ranks"] = Field("parameters", description="what the curve counts")
    cost_weights: Mapping[str, float] | Literal["official"] = Field(
        {},
        description="budget_in ranks: cost of a unit by end of the module's name, others 1; or `official`, IGU-LoRA's code: 1 in "
        "the attention, (d_ff/d + 1)/2 in the MLP. `rank=5234` is then a sum of these costs, the code's target_total_rank",
    )
    fill: bool = Field(True, description="after the first unit that does not fit, continue with the next cheaper unit")
    begin: Steps | Share = Field(0.1, description="no cut before")
    end: Steps | Share = Field(0.6, description="the last cut; ranks stand from here on")
    interval: Steps | Share = Field(0.01, description="between cuts")
    shrink: Literal["last", "every"] = Field(
        "last", description="tensors shrink at the last cut, before it cut triplets may return; or at every cut"
    )

    @model_validator(mode="after")
    def _choices_agree(self) -> "CurveOptions":
        if self.cost_weights and self.budget_in != "ranks":
            raise ValueError("cost_weights are for budget_in: ranks; a budget in parameters knows what a unit costs")
        if not isinstance(self.cost_weights, str) and any(weight <= 0 for weight in self.cost_weights.values()):
            raise ValueError("cost_weights must be above zero")
        if not self.fill and self.budget_in != "ranks":
            raise ValueError("fill: false is for budget_in: ranks; a budget in parameters is spent as far as units fit")
        if isinstance(self.begin, float) and isinstance(self.end, float) and self.begin >= self.end:
            raise ValueError(f"begin {self.begin} is not before end {self.end}")
        if self.interval in (0, 0.0):
            raise ValueError("interval is 0; it takes at least one step")
        return self


class StopWhenStable(Section):
    """End the stage early when `windows` windows in a row each moved less than `share` of the plan's parameters."""

    share: float = Field(0.05, gt=0, le=1, description="of the parameters of the cut that would be made now")
    window: int = Field(10, ge=1, description="scoring batches in a window")
    windows: int = Field(2, ge=1, description="how many stable windows in a row end the stage")

    @property
    def in_words(self) -> str:
        """The rule as a sentence."""
        windows = "1 window" if self.windows == 1 else f"{self.windows} windows in a row"
        return f"{windows} of {self.window} scoring batches moved less than {self.share:.1%} of the plan's parameters"


class StableOptions(Section):
    """Cut: once, at the end of the stage or as soon as the plan is stable; or along a curve on the way (reading A8)."""

    curve: Literal["one-shot", "cubic", "linear"] = Field(
        "one-shot", description="A8: one cut at the end, or a shrinking budget"
    )
    interval: Steps | Share = Field(10, description="between the cuts of a curve, in steps or as a share of the stage")
    stop_when_stable: StopWhenStable | None = Field(
        None, description="end the stage early by the rule below; null trains it whole"
    )

    @model_validator(mode="after")
    def _interval_is_one(self) -> "StableOptions":
        if self.interval in (0, 0.0):
            raise ValueError("interval is 0; it takes at least one step")
        return self

    # What a stage that is thrown away leaves no choice about.
    budget_in: ClassVar[Literal["parameters"]] = "parameters"
    cost_weights: ClassVar[Mapping[str, float] | Literal["official"]] = {}
    fill: ClassVar[bool] = True
    shrink: ClassVar[Literal["last"]] = "last"


class StartOptions(Section):
    """Start of the adapter that is served."""

    factors: Literal["kept", "fresh"] = Field(
        "kept", description="keep the trained factors, or train the plan from fresh ones"
    )


class RetrainOptions(StartOptions):
    """Start of the adapter that is served, where the triplets are there to be scored."""

    factors: Literal["kept", "fresh"] = Field(
        "fresh", description="keep the triplets as they are (ablation), or train the plan from fresh factors"
    )


class RankOptions(Section):
    """Ranks: how scores become ranks at the last cut, and their limits."""

    rank_by: RankBy = Field("score", description="what a unit of rank is worth")
    scope: Scope = Field(
        "global", description="A6: one threshold for all modules, or a share of the budget for each layer"
    )
    max_rank: int | None = Field(None, ge=1, description="upper limit for every module")
    min_rank: int = Field(0, ge=0, description="lower limit for every module; at 0 a module may get no adapter")
    multiple_of: int = Field(1, ge=1, description="every rank is a multiple of this")
    within: float | None = Field(
        None, gt=1, description="2.0: no module below half or above twice the mean rank that the budget buys uniformly"
    )


class TrainingBatchChoices(Section):
    """Scored on the batches that are trained on, and cut along a curve. Shares of the run are floats, steps whole numbers."""

    triplets: TripletOptions = TripletOptions()
    measure: TrainingBatchOptions = TrainingBatchOptions()
    smooth: DeviationOptions = DeviationOptions()
    cut: CurveOptions = CurveOptions()
    ranks: RankOptions = RankOptions()
    start: StartOptions = StartOptions()

    @model_validator(mode="after")
    def _limits_are_heeded(self) -> "TrainingBatchChoices":
        ranks = self.ranks
        if self.cut.budget_in == "ranks" and (
            (ranks.max_rank, ranks.multiple_of, ranks.scope, ranks.within) != (None, 1, "global", None)
        ):
            raise ValueError("max_rank, multiple_of, scope and within are for budget_in: parameters; leave them out")
        return self


class ScoringSetChoices(Section):
    """Scored on a scoring set, and cut at the end of a stage of its own."""

    triplets: TripletOptions = TripletOptions()
    measure: ScoringSetOptions = ScoringSetOptions()
    smooth: RunningOptions = RunningOptions()
    cut: StableOptions = StableOptions()
    ranks: RankOptions = RankOptions()
    start: RetrainOptions = RetrainOptions()

    @model_validator(mode="after")
    def _scores_are_there(self) -> "ScoringSetChoices":
        if self.measure.when == "after" and (self.cut.stop_when_stable is not None or self.cut.curve != "one-shot"):
            raise ValueError("when 'after' leaves no scores to stop or prune by; use 'during'")
        return self


Choices = TrainingBatchChoices | ScoringSetChoices


# A comparison is a pass more. On batches of training few mini-batches are scored, and they would be a large share of the cost.
GROWTH_ON_SCORING_SET, GROWTH_IN_TRAINING = 2, 8


def is_compared(number: int, growth: int) -> bool:
    """Whether the losses are compared at scored mini-batch `number`, from 1: at 1, `growth`, `growth²`, ..."""
    while number % growth == 0:
        number //= growth
    return number == 1


def comparisons(scored: int, growth: int) -> int:
    """How many comparisons are made among so many scored mini-batches."""
    return sum(is_compared(number, growth) for number in range(1, scored + 1))
