"""What a rank-allocation method is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftModel

from lorank.scores import ImportanceScores
from lorank.scoring.one_shot import ScoringInput


@dataclass(frozen=True)
class Method:
    """Five choices; everything else is shared.

    Attributes:
        name: as in a recipe.
        reference: where it is published.
        trained: what is trained while scoring: `"triplets"` that stay until one cut; `"pruned triplets"`, cut on the way; or
            `"nothing"`, for a method that scores the frozen model, or needs no scores.
        presets: preset name -> recipe sections with the other four choices: the score and its smoothing (`scoring`, or
            `calibration` of a frozen model), when the cut falls (`stage1`, or both in `pruning`), how scores become ranks
            (`allocation`). A recipe overrides any of it.
        default_preset: the one that is used when a recipe names none.
        scored: what one score is for.
        options: which of the calibration options the scorer heeds.
        scorer: how the frozen model is scored, for a method that trains nothing while scoring; None for equal scores.
        start: sets the fresh adapter of a plan to where the method lets it start, if that is not PEFT's own start. The
            input has the model inside of the adapter.

    """

    name: str
    reference: str
    trained: Literal["triplets", "pruned triplets", "nothing"]
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    default_preset: str
    scored: Literal["units", "modules"] = "units"
    options: tuple[str, ...] = ()
    scorer: Callable[[ScoringInput], ImportanceScores] | None = None
    start: Callable[[PeftModel, ScoringInput], None] | None = None
