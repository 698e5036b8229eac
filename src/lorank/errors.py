"""One family of errors: every message says what was got, what is allowed, and what to do."""


class LorankError(Exception):
    """Base class of every error that lorank raises on purpose."""


class BudgetError(LorankError):
    """A budget that cannot be read, or that this model cannot honour. Every message ends with the forms that there are."""

    FORMS = (
        '"0.33M" (adapter parameters), "0.06%" (of the base model), "r=2", "rank=144", "keep=50%" or "beta=0.5" (of the '
        "initial ranks)"
    )

    def __init__(self, message: str) -> None:
        # What was pickled is whole already.
        super().__init__(message if self.FORMS in message else f"{message}; a budget is {self.FORMS}")


class TargetError(LorankError):
    """A choice of modules that matches nothing that can be adapted."""


class ScoresError(LorankError):
    """Importance scores that are not usable: not finite, damaged file, another model."""


class PlanError(LorankError):
    """A rank plan that is not usable: damaged file, ranks that do not fit."""


class AllocationError(LorankError):
    """Limits that no rank plan can honour."""


class AdapterError(LorankError):
    """An adapter that is not in the state that was asked for."""


class RecipeError(LorankError):
    """A recipe, or options of RankAllocation, with an unknown key, a bad value, or choices that contradict each other."""


class DataError(LorankError):
    """Data that cannot be trained on: missing file or column, bad labels, too few examples."""


class TrainingError(LorankError):
    """Training that cannot go on, such as a loss that is not finite."""


class ComparisonError(LorankError):
    """A comparison that cannot be made: unknown methods, cells that do not match, too little to compare."""


class OutputError(LorankError):
    """An output directory that belongs to another run."""


class LorankWarning(UserWarning):
    """Something legal that is probably not what was meant."""


def one_line(error: BaseException, most: int = 300) -> str:
    """What another package said, as part of a message of ours: in one line, and not endless."""
    return " ".join(str(error).split())[:most]
