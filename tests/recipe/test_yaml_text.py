"""YAML of strangers is read, or refused, in bounded time and memory."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorank.errors import LorankError, RecipeError
from lorank.recipe.files import make_recipe, read_override
from lorank.recipe.yaml_text import LONGEST, yaml_content

LEVELS = "".join(f"k{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * 9)}]\n" for level in range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 1000 + "]" * 1000, "too deep"),
        ("[" * 100_000, "too deep"),  # PyYAML takes hours
        ('{"a": ' * 16_000, "too deep"),
        ("".join(f"{' ' * depth}k:\n" for depth in range(400)), "too deep|deeper than 20 levels"),
        (f"k0: &a0 [x, x]\n{LEVELS}", "more than 20,000 values"),
        ("a: &a [*a]", "deeper than 20 levels"),
        ("&a\nb: *a", "deeper than 20 levels"),
        ("seed: " + "9" * 5000, "4300 digits"),
        ("seed: 0x" + "f" * 100, "more than 30 digits"),
        ("day: 2001-99-99", "month must be in 1..12"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("a: !!int ''", "does not fit its tag"),
        ("a: !!timestamp x", "does not fit its tag"),
        ("a: !!map [1]", "does not fit its tag|expected a mapping"),
        ("d: &d {a: 1}\nb: {<<: *d}", "merge keys .<<. are not read"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("x" * (LONGEST + 1), "100,001 characters"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        yaml_content(text)


def test_usual_content_and_anchors_are_read() -> None:
    assert yaml_content("a: &x {b: 1.5}\nc: *x\nd: [1, true, null]\n") == {
        "a": {"b": 1.5},
        "c": {"b": 1.5},
        "d": [1, True, None],
    }


def test_what_a_run_wrote_may_be_longer_but_not_endless() -> None:
    labels = "".join(f"- label {number}\n" for number in range(25_000))
    assert len(yaml_content(f"labels:\n{labels}", of_run=True)["labels"]) == 25_000
    for text, said in (
        ("x" * (20 * LONGEST + 1), "2,000,001 characters"),
        (f"k0: &a0 [x, x]\n{LEVELS}", "more than 400,000"),
    ):
        with pytest.raises(ValueError, match=said):
            yaml_content(text, of_run=True)


def test_an_override_is_shown_in_short() -> None:
    with pytest.raises(RecipeError, match="is not YAML") as found:
        read_override("seed=" + "[" * 100_000)
    assert len(str(found.value)) < 300


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["model", "data", "train", "budget", "triplets", "measure", "cut", "expert", "baselines", "search"]
    ),
)
@settings(max_examples=150, deadline=None)
def test_any_value_under_any_key_is_read_or_an_error_of_the_family(value: object, key: str) -> None:
    content = {"model": {"name": "a"}, "budget": "r=2", "data": {"train": "a.csv", "test": "b.csv"}, key: value}
    with suppress(LorankError):
        make_recipe(content)
