"""The method of docs/add-a-method.md, as the file that a user has: its formulas, and its way through every command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from tests.conftest import random_batch, tiny_config
from transformers import BertForSequenceClassification, set_seed
from typer.testing import CliRunner

import lorank
from lorank.cli import app
from lorank.methods import METHODS, plugins
from lorank.methods.plugins import load_plugin, loaded_plugins
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.scoring.one_shot import ScoringInput
from lorank.targets import find_targets

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "gora.py"
STEP = 0.05


@pytest.fixture
def gora() -> Any:
    """The module that the file has become."""
    load_plugin(FILE)
    return sys.modules["lorank_plugin_gora"]


def command(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: Any) -> str:
    """What an unsuccessful command says, in one line; plugins are loaded anew, as in another process."""
    METHODS.pop("gora", None)
    plugins._LOADED.clear()
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.output.splitlines()[-1]


def tiny_model() -> BertForSequenceClassification:
    set_seed(1)
    return BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).double()


BATCHES = [random_batch(4, seed=1), random_batch(2, length=5, seed=2)]


def gradients_of(model: torch.nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss of the six examples of `BATCHES`, by autograd alone."""
    model.eval()
    weights = [model.get_submodule(name).weight for name in names]
    loss = sum(model(**batch).loss * len(batch["labels"]) for batch in BATCHES) / 6
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def test_the_page_has_the_files_text_which_is_short() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert f"```python\n{text}```\n" in (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100


def test_declaring_it_loads_no_torch() -> None:
    code = f"import sys; from lorank.methods.plugins import load_plugin; load_plugin({str(FILE)!r}); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_b_is_the_least_squares_solution(gora: Any) -> None:
    source = torch.Generator().manual_seed(0)
    g, a = (torch.randn(*shape, generator=source, dtype=torch.float64) for shape in ((7, 11), (3, 11)))
    b = gora.projected(g, a)
    torch.testing.assert_close(b, g @ a.T @ torch.linalg.inv(a @ a.T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((g - b @ a) @ a.T, torch.zeros(7, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    least = torch.linalg.matrix_norm(g - b @ a)
    for _ in range(20):
        other = b + 1e-3 * torch.randn(7, 3, generator=source, dtype=torch.float64)
        assert torch.linalg.matrix_norm(g - other @ a) > least


def test_scores_are_the_formulas_and_the_model_stays(gora: Any) -> None:
    model = tiny_model().train()
    model.bert.pooler.requires_grad_(False)
    taking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    scores = lorank.score(model, BATCHES, "gora")
    assert model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == taking
    assert all(parameter.grad is None for parameter in model.parameters())
    gradients = gradients_of(model, list(scores.scores))
    assert len(gradients) == 12
    for name, gradient in gradients.items():
        weight = model.get_submodule(name).weight.detach()
        wanted = (weight * gradient).abs().mean() / sum(weight.shape) ** 0.5
        assert float(scores.scores[name][0]) == pytest.approx(float(wanted), rel=1e-10)
    assert scores.provenance["examples"] == 6
    plan = lorank.allocate(scores, "r=3")
    worth = {name: float(values[0]) for name, values in scores.scores.items()}
    assert plan.ranks[max(worth, key=worth.__getitem__)] > plan.ranks[min(worth, key=worth.__getitem__)]


def started(gora: Any, rank: int) -> tuple[PeftModel, dict[str, Any], dict[str, torch.Tensor]]:
    """A fresh adapter of the base in float64 at its start, its layers by name, and the gradients of the base."""
    base, names = tiny_model(), [f"bert.encoder.layer.{k}.attention.self.query" for k in (0, 1)]
    gradients = gradients_of(base, names)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["query"], task_type=TaskType.SEQ_CLS, lora_dropout=0.1
    )
    targets = [target for target in find_targets(base) if target.name in names]
    model = get_peft_model(base, config).double()
    inside = model.get_base_model()
    layers = {name: inside.get_submodule(name) for name in names}
    before = {name: layer.lora_A["default"].weight.detach().clone() for name, layer in layers.items()}
    taking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    METHODS["gora"].set_start(model, ScoringInput(inside, targets, BATCHES, gora.GoRAOptions(step=STEP)))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == taking
    for name, layer in layers.items():
        torch.testing.assert_close(layer.lora_A["default"].weight.detach(), before[name], rtol=0, atol=0)
        assert layer.base_layer.weight.grad is None
    return model, layers, gradients


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_start_is_a_step_against_the_gradient_in_the_rows_of_a(gora: Any, rank: int) -> None:
    _, layers, gradients = started(gora, rank)
    for name, layer in layers.items():
        a, b = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        onto_rows = torch.linalg.pinv(a) @ a
        wanted = -STEP * (16 / rank) ** 0.5 * gradients[name] @ onto_rows
        torch.testing.assert_close(2 * b @ a, wanted, rtol=1e-9, atol=1e-12)


def test_at_full_rank_the_start_is_gradient_descent(gora: Any) -> None:
    model, _, gradients = started(gora, 16)
    stepped = tiny_model().eval()
    with torch.no_grad():
        for name, gradient in gradients.items():
            stepped.get_submodule(name).weight -= STEP * gradient
    batch = {key: value for key, value in BATCHES[0].items() if key != "labels"}
    torch.testing.assert_close(model.eval()(**batch).logits, stepped(**batch).logits, rtol=1e-9, atol=1e-9)


@pytest.fixture
def recipe_file(gora: Any, tiny_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    recipe = tiny_recipe(method="gora", measure={"examples": 32, "batch_size": 8}, metrics=["accuracy"])
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"}, exclude_unset=True)))
    return path


@pytest.fixture
def own_file(recipe_file: Path, tmp_path: Path) -> Path:
    """A copy of the file that a test may change; loaded when a command is given it."""
    METHODS.pop("gora")
    plugins._LOADED.clear()
    return Path(shutil.copy(FILE, tmp_path / "gora.py"))


@pytest.mark.long
def test_score_allocate_and_train_are_the_run(recipe_file: Path, own_file: Path, tmp_path: Path) -> None:
    plugin, whole, scores, plan = (
        ("--plugin", own_file),
        tmp_path / "run",
        tmp_path / "s.safetensors",
        tmp_path / "p.json",
    )
    command("run", recipe_file, "--output", whole, *plugin)
    command("score", recipe_file, "--output", scores, *plugin)
    command("allocate", scores, "--budget", "r=1", "--output", plan)
    command("train", recipe_file, "--plan", plan, "--output", tmp_path / "trained", *plugin)
    made = RankPlan.load(whole / "plan.json")
    assert made.provenance["method"] == "gora"
    assert made.ranks == RankPlan.load(plan).ranks
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, tmp_path / "trained"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=0)
    # What starts away from the base is a LoRA like any other: nothing but A and B holds it.
    assert {verdict.right for verdict in lorank.verify(whole / "adapter").verdicts if verdict.engine == "peft"} == {
        True
    }
    resolved = yaml.safe_load((whole / "recipe.yaml").read_text())["resolved"]
    assert resolved["plugins"] == {"gora.py": loaded_plugins()[str(own_file)]}
    assert "calibration" in json.loads((whole / "metrics.json").read_text())["results"]["gora"]
    own_file.write_text(own_file.read_text() + "# more\n")
    said = refusal("run", recipe_file, "--output", whole, *plugin)
    assert "a plugin is missing or changed since this run began" in said
    said = refusal("run", recipe_file, "--output", whole)
    assert "method 'gora' is unknown" in said
    assert "give --plugin FILE, if it is in a file" in said


def test_a_recipe_of_another_method_is_scored_by_it(recipe_file: Path, own_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe_file.read_text())
    del content["measure"]
    recipe_file.write_text(yaml.safe_dump({**content, "method": "i-lora", "search": {"max_steps": 4}}))
    scores = tmp_path / "scores.safetensors"
    more = ("measure.examples=24", "model.dropout=0.0", "--method", "gora", "--plugin", own_file, "--output", scores)
    assert "gora, 24 examples" in command("score", recipe_file, *more)
    assert ImportanceScores.load(scores).provenance["method"] == "gora"


@pytest.mark.long
def test_a_comparison_hands_the_file_to_its_cells(recipe_file: Path, own_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    asked = ("compare", recipe_file, "--methods", "lora,gora", "--seeds", "1", "--output", folder)
    command(*asked, "--plugin", own_file)
    cells = {
        name: json.loads((folder / "cells/mood/r=1" / name / "seed-0/result.json").read_text())
        for name in ("lora", "gora")
    }
    assert cells["lora"]["plugin"] is None
    assert cells["gora"]["plugin"] == loaded_plugins()[str(own_file)]
    assert cells["gora"]["steps"] == cells["lora"]["steps"] == 10
    assert RankPlan.load(folder / "cells/mood/r=1/gora/seed-0/run/plan.json").provenance["method"] == "gora"
    own_file.write_text(own_file.read_text() + "# more\n")
    said = refusal(*asked, "--plugin", own_file)
    assert "gora/seed-0 was run by a method of" in said
    assert "gora.py as it was before; give another --output, or remove that folder" in said
    assert "give --plugin FILE" in refusal(*asked)
    assert "lora" in command(*asked[:3], "lora", *asked[4:])  # cells of other methods stay done without the file
