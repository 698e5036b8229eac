from collections.abc import Callable

import pytest
from tests.memory.conftest import CONFIGS

from lorank.memory.untouched import ADAPTED, parameters_by_kind
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
