"""On real models and data, the quickstart's and one that writes; run by `make slow`, skipped loudly where they are missing."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from lorank import RankPlan
from lorank.models.base_size import base_parameters
from lorank.models.loading import load_without_weights
from lorank.recipe.files import load_recipe
from lorank.runs.run import run
from lorank.targets import find_targets, unit_costs
from tests.examples.run_script import run_script

pytestmark = pytest.mark.real_model
quickstart = pytest.mark.skipif(
    not Path("downloads/minilm").exists(), reason="run `python examples/prepare_quickstart.py downloads`"
)
# No package of the index has CoLA; it is on the hub (nyu-mll/glue, cola).
COLA = Path(os.environ.get("LORANK_COLA", "downloads/cola"))
SMOLLM2, FRIENDS = Path("downloads/smollm2"), Path("downloads/friends/train.tsv")


@quickstart
def test_minilm_is_measured_right() -> None:
    model = load_without_weights("downloads/minilm")
    targets = find_targets(model)
    assert base_parameters(model) == 22_565_376  # without the pooler
    assert len(targets) == 36
    assert sum(unit_costs(targets).values()) == 41_472


@quickstart
# Cut to 32 tokens, three news of the scoring set begin as others that are trained on.
@pytest.mark.filterwarnings("ignore:3 of 548 scoring examples are in the training data too")
@pytest.mark.parametrize("preset", ["paper", "loss-per-parameter"])
def test_the_quickstart_recipe_at_a_few_steps(tmp_path: Path, preset: str) -> None:
    steps = ["search.max_steps=6", "train.max_steps=6", "checkpoint_every=4", f"preset={preset}"]
    result = run(load_recipe("examples/quickstart.yaml", steps), tmp_path / "out", Console(quiet=True))
    assert result.plan.budget_parameters == 82_944
    for found in result.results.values():
        assert 82_944 - 768 < found["adapter_parameters"] <= 82_944
        assert found["metrics"]["accuracy"] > 0.3


@quickstart
@pytest.mark.skipif(
    not (COLA / "train.tsv").exists(),
    reason="put CoLA into downloads/cola, or give LORANK_COLA=FOLDER: train.tsv and validation.tsv, columns sentence and label",
)
@pytest.mark.filterwarnings("ignore:.* scoring examples are in the training data too")
def test_i_loras_experiment_on_cola(tmp_path: Path) -> None:
    """The paper's recipe, on a smaller model, in fewer steps at higher learning rates."""
    files = {"train": str(COLA / "train.tsv"), "test": str(COLA / "validation.tsv")}
    data = {**files, "text": "sentence", "max_length": 32}
    changes = ["model={name: downloads/minilm, dropout: 0.0}", f"data={json.dumps(data)}"]
    changes += [
        "search.max_steps=100",
        "search.learning_rate=1.0e-2",
        "train.max_steps=400",
        "train.learning_rate=2.0e-3",
    ]
    recipe = load_recipe("src/lorank/recipes/i-lora/deberta-v3-base-cola.yaml", changes)
    assert (recipe.preset, recipe.budget, sorted(recipe.baselines)) == ("paper", "keep=50%", ["full", "lora"])
    result = run(recipe, tmp_path / "out", Console(quiet=True))
    # Rank 2 in 36 modules at the start: 36 of 72 units stay, whatever they cost. LoRA has the size of the first stage.
    plan = result.plan
    assert (plan.total_rank, plan.budget_units, plan.budget_parameters) == (36, 36, plan.spent)
    assert result.results["lora"]["adapter_parameters"] == 82_944
    assert result.results["full"]["trained_parameters"] == 22_713_216  # with the pooler
    for name, found in result.results.items():
        print(name, found["metrics"], found["loss"])
        assert found["steps"] == 400
        assert found["loss"] < 0.65
    # Always "acceptable" has 0.
    assert result.results["full"]["metrics"]["matthews"] > 0.1


@pytest.mark.skipif(
    not (SMOLLM2.exists() and FRIENDS.exists()),
    reason="run `python examples/prepare_more.py downloads smollm2 friends`",
)
def test_i_lora_with_trl_on_smollm2(tmp_path: Path) -> None:
    few = tmp_path / "few.tsv"
    few.write_text("".join(FRIENDS.read_text(encoding="utf-8").splitlines(keepends=True)[:401]), encoding="utf-8")
    run_script("i_lora_trl.py", SMOLLM2, few, tmp_path / "out", 4, timeout=3600)
    plan = RankPlan.load(tmp_path / "out" / "stage1" / "plan.json")
    assert len(plan.ranks) == 210  # 30 layers of seven projections
    assert plan.budget_parameters == 1_221_120
    assert plan.budget_parameters - 2112 < plan.spent <= plan.budget_parameters  # less than the largest unit is left
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == plan.spent
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
