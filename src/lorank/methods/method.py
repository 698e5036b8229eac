"""What a rank-allocation method is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftModel

from lorank.engine.options import Choices, ScoringSetChoices
from lorank.scores import ImportanceScores
from lorank.scoring.one_shot import ScoringInput


@dataclass(frozen=True)
class Preset:
    """A named set of choices; what it leaves out is the options' own default.

    Attributes:
        options: of the method's `choices`, or calibration options of a scorer.
        ranks: how scores become ranks (`lorank.engine.options.RankOptions`).

    """

    options: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A set of choices; everything else is shared.

    Attributes:
        name: as in a recipe.
        reference: where it is published.
        presets: preset name -> choices. A user's own options go over them.
        default_preset: the one that is used when none is named.
        choices: the options of a method that allocates while adapters train; None for one that scores the frozen model, or
            needs no scores.
        scored: what one score is for.
        options: which of the calibration options the scorer heeds.
        scorer: how the frozen model is scored; None for equal scores, or scores of training.
        start: sets the fresh adapter of a plan to where the method lets it start, if that is not PEFT's own start. The
            input has the model inside of the adapter.

    """

    name: str
    reference: str
    presets: Mapping[str, Preset]
    default_preset: str
    choices: type[Choices] | None = None
    scored: Literal["units", "modules"] = "units"
    options: tuple[str, ...] = ()
    scorer: Callable[[ScoringInput], ImportanceScores] | None = None
    start: Callable[[PeftModel, ScoringInput], None] | None = None

    @property
    def allocates_in_training(self) -> bool:
        """Whether ranks are decided while triplets train."""
        return self.choices is not None

    @property
    def has_scoring_set(self) -> bool:
        """Whether triplets are scored on examples that they are not trained on."""
        return self.choices is not None and issubclass(self.choices, ScoringSetChoices)
