"""What a rank-allocation method is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SerializeAsAny

from lorank.engine.options import RankOptions, ScoringSetChoices, TrainingBatchChoices
from lorank.scoring.options import CalibrationOptions
from lorank.validation import Section

if TYPE_CHECKING:
    from peft import PeftModel

    from lorank.scores import ImportanceScores
    from lorank.scoring.one_shot import ScoringInput


class FrozenModelChoices(Section):
    """The choices of a method that decides before training.

    Attributes:
        measure: options of the scorer; None where there are none.
        ranks: how scores become ranks.

    """

    measure: SerializeAsAny[CalibrationOptions] | None = None
    ranks: RankOptions = RankOptions()


Preset = TrainingBatchChoices | ScoringSetChoices | FrozenModelChoices


@dataclass(frozen=True)
class Method:
    """Named sets of choices; everything else is shared.

    A scorer and a start are functions, or "module:function", which is loaded when it is called: a method is declared without
    torch, so that commands which only name it start at once.

    Attributes:
        name: as in a recipe.
        reference: where it is published.
        presets: preset name -> choices, all of one class. A user's own options go over them.
        default_preset: the one that is used when none is named.
        scored: what one score is for.
        scorer: how the frozen model is scored; None for equal scores, or scores of training.
        start: sets the fresh adapter of a plan to where the method lets it start, if that is not PEFT's own start. The
            input has the model inside of the adapter.
        search_share: preset name -> what a recipe's search may cost where the recipe says nothing about its length, as a share of
            what `train` costs; presets that are not in it search for as long as `train` trains.
        takes_experts: whether its scores, or equal ones, are also for parameters of fused experts.
        earlier_default: the default preset of earlier versions, where it was another one: what recipes of format 1 mean, and the
            records of runs that do not name the preset of a baseline.

    """

    name: str
    reference: str
    presets: Mapping[str, Preset]
    default_preset: str
    scored: Literal["units", "modules"] = "units"
    scorer: "Callable[[ScoringInput], ImportanceScores] | str | None" = None
    start: "Callable[[PeftModel, ScoringInput], None] | str | None" = None
    search_share: Mapping[str, float] = field(default_factory=dict)
    takes_experts: bool = False
    earlier_default: str | None = None

    @property
    def default(self) -> Preset:
        """The choices of the default preset."""
        return self.presets[self.default_preset]

    @property
    def allocates_in_training(self) -> bool:
        """Whether ranks are decided while triplets train."""
        return isinstance(self.default, TrainingBatchChoices | ScoringSetChoices)

    @property
    def has_scoring_set(self) -> bool:
        """Whether triplets are scored on examples that they are not trained on."""
        return isinstance(self.default, ScoringSetChoices)

    @property
    def looks_at(self) -> str:
        """What decides the ranks."""
        if self.has_scoring_set:
            return "a scoring set"
        if self.allocates_in_training:
            return "training batches"
        return "nothing" if self.scorer is None else "the frozen model"

    def score(self, scoring: "ScoringInput") -> "ImportanceScores":
        """Call the scorer, of a method that has one."""
        return _loaded(self.scorer)(scoring)

    def set_start(self, model: "PeftModel", scoring: "ScoringInput") -> None:
        """Call the start, of a method that has one."""
        _loaded(self.start)(model, scoring)


def _loaded(function: Any) -> Any:
    return resolve_name(function) if isinstance(function, str) else function
