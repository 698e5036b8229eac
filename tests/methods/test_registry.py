import pytest

from lorank import Method, Preset, RankAllocation, RecipeError, register
from lorank.engine.options import TrainingBatchChoices
from lorank.methods import METHODS


@pytest.fixture
def _registry_as_before():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("_registry_as_before")
def test_a_registered_method_allocates() -> None:
    patient = Preset(options={"estimator": "training-pass", "score": "mean", "every": 5}, ranks={"rank_by": "score"})
    method = Method("patient", "ours", {"default": patient}, "default", choices=TrainingBatchChoices)
    assert register(method) is METHODS["patient"]
    assert register(method) is method  # the same once more
    allocation = RankAllocation("patient", "r=2", every=7)
    assert (allocation.options.estimator, allocation.options.every) == ("training-pass", 7)
    with pytest.raises(RecipeError, match="a method 'patient' is registered already"):
        register(Method("patient", "others", {"default": patient}, "default", choices=TrainingBatchChoices))


@pytest.mark.usefixtures("_registry_as_before")
@pytest.mark.parametrize(
    ("presets", "default", "said"),
    [
        ({"default": {"every": 1}}, "default", r"is dict; give a lorank\.Preset"),
        (
            {"default": Preset(options={"evry": 1})},
            "default",
            r"preset 'default' of odd: evry: unknown key \(did you mean every\?\)",
        ),
        ({"default": Preset(ranks={"rank_by": "size"})}, "default", "rank_by: Input should be"),
        ({"default": Preset()}, "other", "default_preset 'other' of odd is none of its presets: default"),
    ],
)
def test_what_cannot_be_a_method_is_refused(presets, default: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        register(Method("odd", "ours", presets, default, choices=TrainingBatchChoices))
    assert "odd" not in METHODS


def test_something_else_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"register got str; give a lorank\.Method"):
        register("igu-lora")  # type: ignore[arg-type]
