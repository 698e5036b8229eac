"""The papers' recipes: current, and each runs on a tiny random model of its architecture and data of its columns."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import BAD, GOOD, sentence
from transformers import DebertaV2Config, DebertaV2Model, set_seed

from lorank.training.recipe import load_recipe
from lorank.training.run import run

PAPERS = Path(__file__).parents[2] / "recipes" / "papers"
RECIPES = sorted(PAPERS.glob("*/*.yaml"))


@pytest.fixture(scope="module")
def tiny_deberta(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeBERTaV3's architecture, tiny and random, with the words of the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("deberta") / "tiny"
    set_seed(0)
    config = DebertaV2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, type_vocab_size=0,
        relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def rows_of(columns: list[str], regression: bool, count: int, seed: int) -> str:
    source, lines = random.Random(seed), []
    for number in range(count):
        mood = GOOD if number % 2 else BAD
        row: dict[str, Any] = {column: sentence(source, mood) for column in columns}
        lines.append(json.dumps({**row, "label": 5.0 * source.random() if regression else number % 2}))
    return "\n".join(lines)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_papers_recipe_runs(path: Path, tiny_deberta: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    columns, regression = content["data"]["text"], content["data"].get("task") == "regression"
    for part, count in (("train", 96), ("test", 16)):
        (tmp_path / f"{part}.jsonl").write_text(rows_of(columns, regression, count, count))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "text": columns}
    data |= {"task": "regression" if regression else "classification", "max_length": content["data"]["max_length"]}
    shorter = [
        "stage1.max_steps=8",
        "stage1.batch_size=8",
        "stage2.max_steps=3",
        "baselines=[]",
        f"data={json.dumps(data)}",
    ]
    if content["method"] == "adalora":
        # Twelve modules in place of 72, steps in place of epochs.
        shorter += ["budget=rank=24", "pruning.begin=2", "pruning.interval=1", "pruning.end=6"]
    else:
        shorter.append("scoring.batch_size=8")
    result = run(load_recipe(path, [f"model={tiny_deberta}", *shorter]), tmp_path / "out")
    assert list(next(iter(result.results.values()))["metrics"]) == content["metrics"]
    assert len(result.plan.ranks) == 12
    assert 0 < result.plan.total_rank <= 24


def test_the_files_are_what_the_script_writes() -> None:
    sys.path.insert(0, str(PAPERS))
    try:
        from write_recipes import written
    finally:
        sys.path.remove(str(PAPERS))
    found = written()
    assert set(found) == set(RECIPES)
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("override", ["scoring.source=training", "scoring.nodes=gradient", "scoring.intervals=4"])
def test_ablations_are_one_override(override: str) -> None:
    assert f"`{override}`" in (PAPERS / "README.md").read_text()
    load_recipe(PAPERS / "i-lora" / "deberta-v3-base-cola.yaml", [override])


def test_recipes_of_the_comparison_can_be_read() -> None:
    for path in (PAPERS.parent / "compare").glob("*.yaml"):
        load_recipe(path)
