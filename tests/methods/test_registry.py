import pytest

from lorank import Method, RankAllocation, RecipeError, register
from lorank.engine.options import DeviationOptions, TrainingBatchChoices, TrainingBatchOptions
from lorank.methods import METHODS, FrozenModelChoices

PATIENT = TrainingBatchChoices(
    measure=TrainingBatchOptions(estimator="training-pass", every=5), smooth=DeviationOptions(score="mean")
)


def test_a_registered_method_allocates() -> None:
    method = Method("patient", "ours", {"default": PATIENT}, "default")
    assert register(method) is METHODS["patient"]
    assert register(method) is method  # the same once more
    choices = RankAllocation("patient", "r=2", every=7).options
    assert (choices.measure.estimator, choices.measure.every) == ("training-pass", 7)
    assert choices.smooth.score == "mean"
    with pytest.raises(RecipeError, match="a method 'patient' is registered already"):
        register(Method("patient", "others", {"default": PATIENT}, "default"))


@pytest.mark.parametrize(
    ("presets", "default", "said"),
    [
        ({"default": {"every": 1}}, "default", r"preset 'default' of odd is dict; give TrainingBatchChoices, "),
        (
            {"default": PATIENT, "frozen": FrozenModelChoices()},
            "default",
            "preset 'frozen' of odd is FrozenModelChoices, its default preset TrainingBatchChoices",
        ),
        ({"default": PATIENT}, "other", "default_preset 'other' of odd is none of its presets: default"),
    ],
)
def test_what_cannot_be_a_method_is_refused(presets, default: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        register(Method("odd", "ours", presets, default))
    assert "odd" not in METHODS


def test_something_else_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"register got str; give a lorank\.Method"):
        register("igu-lora")  # type: ignore[arg-type]


def test_what_methods_look_at() -> None:
    assert {
        name: method.looks_at for name, method in METHODS.items() if name in ("i-lora", "adalora", "eva", "lora")
    } == {
        "i-lora": "a scoring set",
        "adalora": "training batches",
        "eva": "the frozen model",
        "lora": "nothing",
    }
