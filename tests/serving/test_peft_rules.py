"""Rules that are written again here are PEFT's own, for every config that can be made up."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lorank.serving.peft_rules import adapted_by, check_choice, pattern_key

PARTS = ["model", "layers", "experts", "h", "0", "1", "11", "q_proj", "proj", "lm_head", "a.b", "x+y"]
names = st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(".".join)
# Whole names and their ends, and expressions of some kinds: anchored, for an end, with a choice, with a bare dot.
expressions = st.one_of(
    names.map(re.escape),
    names,
    names.map(lambda name: f"^{re.escape(name)}$"),
    names.map(lambda name: rf".*\.{name}"),
    st.sampled_from([r".*proj", r"layers\.\d+\..*", r"q_proj|lm_head", r".*(q_proj|0)", r"", r"."]),
)
entries = st.one_of(expressions, st.lists(names, max_size=4))
numbers = st.one_of(st.none(), st.integers(0, 12), st.lists(st.integers(0, 12), max_size=3))
lists = st.sampled_from(["layers", "h", "experts", "model.layers", r"model\.layers", "lay", ""])
choices = st.fixed_dictionaries(
    {"target_modules": entries},
    optional={
        "exclude_modules": st.one_of(st.none(), entries),
        "layers_to_transform": numbers,
        "layers_pattern": st.one_of(st.none(), lists, st.lists(lists, max_size=2)),
    },
)


def of_peft(choice: dict[str, Any]) -> LoraConfig:
    return LoraConfig(**{key: value for key, value in choice.items() if value is not None})


@settings(max_examples=600, deadline=None)
@given(choice=choices, modules=st.lists(names, min_size=1, max_size=6))
def test_a_choice_of_modules_is_refused_and_read_as_peft_does(choice: dict[str, Any], modules: list[str]) -> None:
    try:
        config = of_peft(choice)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            check_choice(choice)
        return
    check_choice(choice)
    assert adapted_by(choice, modules) == [name for name in modules if check_target_module_exists(config, name)]


@settings(max_examples=400, deadline=None)
@given(layers=numbers, pattern=st.one_of(lists, st.lists(lists, max_size=2)), modules=st.lists(names, min_size=1))
def test_layers_are_chosen_as_peft_does(layers: Any, pattern: Any, modules: list[str]) -> None:
    """Entries that end every module, so that the layers alone decide."""
    choice = {"target_modules": PARTS, "layers_to_transform": layers}
    choice |= {"layers_pattern": pattern} if layers is not None else {}
    config = of_peft(choice)
    assert adapted_by(choice, modules) == [name for name in modules if check_target_module_exists(config, name)]


@pytest.mark.parametrize("pattern", [None, [], "", "layers", ["layers"], ["h", "layers"], ["h"]])
@pytest.mark.parametrize("layers", [None, [], 0, 1, [0, 2], [11]])
def test_layers_of_blocks_and_of_experts(layers: Any, pattern: Any) -> None:
    modules = [
        *(f"model.layers.{number}.q_proj" for number in (0, 1, 2, 11)),
        *(f"layers.{number}.q_proj" for number in (0, 1)),  # PEFT wants a dot before the list where no pattern is given
        *("model.layers.1.experts.0.q_proj", "model.layers.0.experts.1.q_proj", "head.q_proj", "q_proj"),
    ]
    choice: dict[str, Any] = {"target_modules": ["q_proj"], "layers_to_transform": layers}
    if pattern and layers is None:
        with pytest.raises(ValueError, match="layers_to_transform` must also"):
            check_choice(choice | {"layers_pattern": pattern})
        return
    choice["layers_pattern"] = pattern
    config = of_peft(choice)
    assert adapted_by(choice, modules) == [name for name in modules if check_target_module_exists(config, name)]


@settings(max_examples=400, deadline=None)
@given(keys=st.lists(expressions, max_size=5), module=names)
def test_the_key_of_a_pattern_is_the_one_that_peft_takes(keys: list[str], module: str) -> None:
    assert pattern_key(keys, module) == get_pattern_key(keys, module)
