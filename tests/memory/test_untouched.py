from collections.abc import Callable

import pytest
from tests.memory.conftest import CONFIGS

from lorank.errors import RecipeError
from lorank.memory.inspection import inspect_model
from lorank.memory.question import read_question
from lorank.memory.untouched import ADAPTED, ADAPTED_EXPERTS, parameters_by_kind
from lorank.models.loading import load_without_weights
from lorank.targets import find_targets


@pytest.mark.parametrize("kind", CONFIGS)
def test_kinds_add_up_to_the_model(kind: str, config_folder: Callable[[str], str]) -> None:
    model = load_without_weights(config_folder(kind))
    targets = find_targets(model)
    found = parameters_by_kind(model, targets)
    assert sum(found.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert found[ADAPTED] == sum(target.d_in * target.d_out for target in targets)
    assert "embeddings" in found
    assert ("heads" in found) == (kind not in ("t5", "whisper"))  # theirs are tied to embeddings


def test_adapted_experts_are_counted_with_their_copies(config_folder: Callable[[str], str]) -> None:
    folder = config_folder("mixtral")
    without, with_experts = (
        inspect_model(model, find_targets(model, target_parameters=chosen), read_question({"budget": "r=2", "seq": 16}))
        for model, chosen in ((load_without_weights(folder), None), (load_without_weights(folder), "all-experts"))
    )
    experts = 3 * 4 * (64 * 256 + 128 * 64)
    assert without.parameters["experts"] == with_experts.parameters[ADAPTED_EXPERTS] == experts
    assert "experts" not in with_experts.parameters
    assert with_experts.activations.merged_experts == 4 * experts
    unit = 3 * 4 * ((64 + 256) + (128 + 64))
    assert with_experts.trained.final_parameters == without.trained.final_parameters + 2 * unit
    model = load_without_weights(folder)
    question = read_question({"budget": "r=2", "method": "igu-lora"})
    with pytest.raises(RecipeError, match="method 'igu-lora' cuts triplets of linear layers alone"):
        inspect_model(model, find_targets(model, target_parameters="all-experts"), question)
