import doctest

import pytest

from lorank import module_names
from lorank.module_names import (
    ends_with,
    factor_of,
    has_part,
    in_base_model,
    is_adapter_tensor,
    is_saved_by,
    is_within,
    leaf_of,
    natural_order,
    parameter_of_tensor,
    parent_of,
    places,
    shorter_ends,
    sibling,
    stack_label,
    without_numbers,
    without_wrappers,
)


def test_the_examples_are_right() -> None:
    assert doctest.testmod(module_names).attempted > 15
    assert not doctest.testmod(module_names).failed


def test_layers_are_ordered_as_numbers() -> None:
    assert sorted(["h.10.a", "h.2.a", "h.2.a.b"], key=natural_order) == ["h.2.a", "h.2.a.b", "h.10.a"]


@pytest.mark.parametrize("name", ["score", "a.b", "model.layers.0.mlp.up_proj"])
def test_parent_and_leaf_make_the_name(name: str) -> None:
    assert sibling(name, leaf_of(name)) == name
    assert f"{parent_of(name)}.{leaf_of(name)}".removeprefix(".") == name


def test_ends_and_insides_stop_at_dots() -> None:
    name = "layer.1.attention.output.dense"
    assert [end for end in (*shorter_ends(name), name, "put.dense", "dens") if ends_with(name, end)] == [
        *shorter_ends(name),
        name,
    ]
    assert name not in shorter_ends(name)
    assert not list(shorter_ends("dense"))
    assert is_within(name, ["layer.1", "other"])
    assert not is_within(name, ["layer.1.att"])
    assert not is_within("layer.10.output", ["layer.1"])
    assert not is_within(name, [])
    assert has_part(name, "output")
    assert not has_part(name, "out")


def test_entries_of_modules_to_save_are_patterns_of_whole_parts() -> None:
    assert is_saved_by("model.score", "score")
    assert is_saved_by("score.dense", "score")
    assert is_saved_by("model.score2", r"score\d")
    assert not is_saved_by("model.scorer", "score")


def test_wrappers_and_numbers() -> None:
    assert without_wrappers("module._orig_mod.bert.pooler.dense.base_layer.weight", "bert") == "pooler.dense.weight"
    assert without_wrappers("pooler.dense.weight", "bert") == "pooler.dense.weight"
    assert without_numbers("h.3.attn.c_proj") == "h.#.attn.c_proj"
    assert without_numbers("layers.1.experts.20.up") == "layers.#.experts.#.up"
    assert without_numbers("score.weight") is None


@pytest.mark.parametrize(
    ("tensor", "factor", "parameter"),
    [
        ("base_model.model.q.lora_A.default.weight", ("base_model.model.q", "default.weight"), None),
        ("base_model.model.q.lora_B.default.weight", ("base_model.model.q", "default.weight"), "q.weight"),
        ("base_model.model.wte.lora_embedding_A.default", ("base_model.model.wte", "default"), None),
        ("base_model.model.q.lora_B.weight", ("base_model.model.q", "weight"), "q.weight"),
        ("base_model.model.q.lora_lambda.default", None, None),
        ("base_model.model.score.weight", None, "score.weight"),
        ("base_model.model.score.modules_to_save.default.weight", None, "score.modules_to_save.weight"),
    ],
)
def test_tensors_of_adapters(tensor: str, factor: tuple[str, str] | None, parameter: str | None) -> None:
    assert factor_of(tensor) == factor
    assert parameter_of_tensor(tensor) == parameter
    assert is_adapter_tensor(tensor) is ("lora_" in tensor)
    assert in_base_model(tensor) == tensor.removeprefix("base_model.model.")


def test_rows_of_a_picture_say_their_stack() -> None:
    placed = places(["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1", "model.shared"])
    assert [stack_label(place.stack) for place in placed.values()] == ["encoder", "decoder", "model"]
    assert [place.layer for place in placed.values()] == [0, 0, None]
