"""`lorank headroom` on a tiny model: what it leaves behind, and that it continues."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file
from tests.conftest import BAD, GOOD, sentence, tiny_writer
from typer.testing import CliRunner

from lorank.cli import app
from lorank.errors import ComparisonError, OutputError
from lorank.headroom.measure import measure_headroom
from lorank.headroom.results import HeadroomOptions, looks_made
from lorank.headroom.training import SideBySide

# Its examples are few, on purpose: what is said of small scoring sets stands in tests of the engine.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:the scoring set is a single batch", "ignore:the ranks were decided by 1 scored"
)
OPTIONS = HeadroomOptions(random=2, seeds=3, held_out=40, side_by_side=3)
TRAIN = {"max_steps": 6, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def recipe(tiny_recipe: Any, tmp_path: Path) -> Any:
    """More training data than the other tests have: plans are judged on a fifth of it."""
    source, rows = random.Random(1), []
    for k in range(300):
        rows.append((sentence(source, GOOD if k % 2 else BAD), "good" if k % 2 else "bad"))
    path = tmp_path / "more.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return tiny_recipe(data={"train": str(path)}, train=TRAIN, budget="r=2", triplets={"initial_rank": 4})


@pytest.mark.long
def test_stopped_and_continued_is_the_same_as_at_once(recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    calls, real, folder = [], SideBySide._write, tmp_path / "out"

    def dies(self: SideBySide, *arguments: Any) -> None:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        real(self, *arguments)

    monkeypatch.setattr(SideBySide, "_write", dies)
    with (tmp_path / "log").open("w") as log, pytest.raises(KeyboardInterrupt):
        measure_headroom(recipe, folder, OPTIONS, Console(file=log, width=300))
    assert "plans x 3 seeds x 6 steps" in (said := (tmp_path / "log").read_text())
    assert "without dropout" in said
    monkeypatch.setattr(SideBySide, "_write", real)
    whole = measure_headroom(recipe, folder, OPTIONS, Console(quiet=True))
    names = list(whole.plans)
    assert names[0] == "uniform"
    assert {"feed-forward", "attention", "random 0", "random 1", "adalora", "search"} <= set(names) | set(
        whole.left_out
    )
    budget = whole.plans["uniform"].budget_parameters
    for plan in whole.plans.values():
        assert budget - max(plan.unit_costs.values()) < plan.spent <= budget
    assert whole.losses.shape[:2] == (len(names), 3)
    written = json.loads((folder / "headroom.json").read_text())
    assert written["examples"]["judged"] == whole.losses.shape[2]
    assert [look["seeds"] for look in written["looks"]] == [3]
    # As a command, without the first parts of a seed: trained again they are the same to the bit, and so is the rest.
    before = stored(folder)
    for number in (0, 1):
        (folder / "losses" / "seed-1" / f"{number:03}.safetensors").unlink()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    asked = ["--plans", "2", "--seeds", "3", "--held-out", "40", "--side-by-side", "3", "--output", str(folder)]
    result = CliRunner().invoke(app, ["headroom", str(tmp_path / "recipe.yaml"), *asked])
    assert result.exit_code == 0, result.output
    for said in (whole.headroom.sentence, "times chosen", "Spread of the loss", "headroom.png"):
        assert said in result.output
    after = stored(folder)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "headroom.json").read_text()) == written
    with pytest.raises(OutputError, match="plans"):
        looks_made(folder / "headroom.json", {**whole.plans, "random 2": whole.plans["random 0"]}, 0.02)
    with pytest.raises(OutputError, match=r"give --smallest 0\.02"):
        measure_headroom(recipe, folder, replace(OPTIONS, smallest=0.5), Console(quiet=True))
    with pytest.raises(OutputError, match="give --held-out 40 with the same data"):
        measure_headroom(recipe, folder, replace(OPTIONS, held_out=50), Console(quiet=True))


def test_where_no_plan_differs_nothing_is_trained(recipe: Any, tmp_path: Path) -> None:
    one = recipe.model_copy(update={"target_modules": ["layer.0.attention.self.query"]})
    with pytest.raises(ComparisonError, match="no plan differs from uniform ranks with 1 targets"):
        measure_headroom(one, tmp_path / "out", OPTIONS, Console(quiet=True))


def stored(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """Seed and plan -> losses that are in the folder."""
    return {
        (path.parent.name, name): values
        for path in (folder / "losses").rglob("*.safetensors")
        for name, values in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("value", "message"), [({"seeds": 2}, "too few"), ({"smallest": 2.0}, "share"), ({"side_by_side": 0}, "side")]
)
def test_options_that_cannot_be(value: Any, message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        HeadroomOptions(**value)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["regression", "decoder"])
def test_other_tasks(kind: str, recipe: Any, tiny_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
    if kind == "regression":
        rows = Path(recipe.data.train).read_text().replace("\tgood", "\t1.5").replace("\tbad", "\t0.25")
        (tmp_path / "numbers.tsv").write_text(rows)
        data = {"train": str(tmp_path / "numbers.tsv"), "test": str(tmp_path / "numbers.tsv"), "task": "regression"}
        own = tiny_recipe(data=data, train=TRAIN, budget="r=2", triplets={"initial_rank": 4})
    else:
        source = random.Random(2)
        texts = sorted({sentence(source, GOOD + BAD) for _ in range(150)})
        pairs = [{"document": text, "summary": "fine" if k % 2 else "dull"} for k, text in enumerate(texts)]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        data = {"train": str(path), "test": str(path), "task": "summarization", "max_target_length": 4}
        own = tiny_recipe(
            model=str(tiny_writer("decoder", tiny_folder, tmp_path)),
            data=data,
            train=TRAIN,
            budget="r=2",
            triplets={"initial_rank": 4},
        )
    found = measure_headroom(own, tmp_path / "out", OPTIONS, Console(quiet=True))
    assert np.isfinite(found.losses).all()
    assert {"feed-forward", "attention"} <= set(found.plans)
