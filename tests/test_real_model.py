"""On the quickstart's real model and data; run by `make slow`, skipped loudly where they were not downloaded."""

from pathlib import Path

import pytest
from rich.console import Console

from lorank.models.base_size import base_parameters
from lorank.models.loading import load_without_weights
from lorank.recipe.recipe import load_recipe
from lorank.runs.run import run
from lorank.targets import find_targets, unit_costs

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not Path("downloads/minilm").exists(), reason="run `python examples/prepare_quickstart.py downloads`"
    ),
]


def test_minilm_is_measured_right() -> None:
    model = load_without_weights("downloads/minilm")
    targets = find_targets(model)
    assert base_parameters(model) == 22_565_376  # without the pooler
    assert len(targets) == 36
    assert sum(unit_costs(targets).values()) == 41_472


@pytest.mark.parametrize("preset", ["paper", "loss-per-parameter"])
def test_the_quickstart_recipe_at_a_few_steps(tmp_path: Path, preset: str) -> None:
    steps = ["stage1.max_steps=6", "stage2.max_steps=6", "checkpoint_every=4", f"preset={preset}"]
    result = run(load_recipe("examples/quickstart.yaml", steps), tmp_path / "out", Console(quiet=True))
    assert result.plan.budget_parameters == 82_944
    for found in result.results.values():
        assert 82_944 - 768 < found["adapter_parameters"] <= 82_944
        assert found["metrics"]["accuracy"] > 0.3
