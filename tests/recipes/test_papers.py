"""The papers' recipes: current, and each runs on a tiny random model of its architecture and data of its columns."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import BAD, GOOD, save_tiny, sentence, tiny_writer
from tokenizers import pre_tokenizers
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    RobertaConfig,
    RobertaModel,
    set_seed,
)

from lorank.compare.sweep.variants import read_sweep, read_variants
from lorank.recipe.files import load_recipe
from lorank.runs.run import run

PAPERS = Path(__file__).parents[2] / "src" / "lorank" / "recipes"
ABLATIONS = {
    "i-lora/table3": ("i-lora/deberta-v3-base-cola", "i-lora/deberta-v3-base-rte", "i-lora/deberta-v3-base-mrpc"),
    "igu-lora/ablation": ("igu-lora/qwen2.5-0.5b-boolq", "igu-lora/qwen2.5-0.5b-gsm8k"),
}
RECIPES = sorted(set(PAPERS.glob("*/*.yaml")) - {PAPERS / f"{name}.yaml" for name in ABLATIONS})


def deberta(tiny_folder: Path, folder: Path) -> Path:
    config = DebertaV2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, type_vocab_size=0,
        relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def roberta(tiny_folder: Path, folder: Path) -> Path:
    config = RobertaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0,
        max_position_embeddings=520, type_vocab_size=1, initializer_range=0.3,
    )  # fmt: skip
    return save_tiny(RobertaModel(config), tiny_folder, folder)


def qwen(tiny_folder: Path, folder: Path) -> Path:
    """With a tokenizer of bytes: `AutoTokenizer` gives every Qwen2 its own class."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    Qwen2Tokenizer({letter: number for number, letter in enumerate(letters)}, []).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=264, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def bart(tiny_folder: Path, folder: Path) -> Path:
    return tiny_writer("encoder-decoder", tiny_folder, folder)


MODELS: dict[str, Callable[[Path, Path], Path]] = {
    "deberta-v3-base": deberta, "roberta-large": roberta, "qwen2.5-0.5b": qwen, "bart-large": bart,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("papers")
    set_seed(0)
    return {name: make(tiny_folder, folder / name) for name, make in MODELS.items()}


def row_of(data: dict[str, Any], source: random.Random, number: int) -> dict[str, Any]:
    """A row with the columns that the data set has on the hub."""
    text = sentence(source, GOOD if number % 2 else BAD)
    answer: dict[str, Any] = {
        "boolq": {"passage": text, "question": "was it", "answer": bool(number % 2)},
        "arc": {"question": text, "choices": {"label": ["A", "B"], "text": ["cold", "warm"]}, "answerKey": "AB"[number % 2]},
        "gsm8k": {"question": text, "answer": f"so\n#### {number}"},
        "aqua": {"question": text, "options": ["A)1", "B)2"], "rationale": "so", "correct": "AB"[number % 2]},
        "summarization": {"document": text, "summary": text.split()[-1]},
    }  # fmt: skip
    if data.get("task") in answer:
        return answer[data["task"]]
    row: dict[str, Any] = {column: sentence(source, GOOD if number % 2 else BAD) for column in data["text"]}
    return {**row, "label": 5.0 * source.random() if data.get("task") == "regression" else number % 2}


# The tasks of a paper differ in numbers, columns and prompts (tests/tasks has those): a few stand for all.
USUAL = [path for path in RECIPES if not path.stem.endswith(("-stsb", "-xsum", "-gsm8k"))]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.long) if path in USUAL or "adalora" in path.parts else path
        for path in RECIPES
    ],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_a_papers_recipe_runs(path: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    model = next(folder for name, folder in tiny_models.items() if path.stem.startswith(name))
    data = {
        key: value for key, value in content["data"].items() if "split" not in key and key not in ("name", "config")
    }
    share = data.get("sample", {"train": 1})["train"]
    parts = content["data"].get("test_split", "validation")
    names = list(parts) if isinstance(parts, dict) else ["test"]
    for part, count in (("train", 96), *((name, 16) for name in names)):
        source, count = random.Random(f"{part}/{count}"), round(count / share)
        lines = [json.dumps(row_of(data, source, number)) for number in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    data["train"] = str(tmp_path / "train.jsonl")
    tests = {name: str(tmp_path / f"{name}.jsonl") for name in names}
    data["test"] = tests if len(tests) > 1 else tests["test"]
    if "max_target_length" in data:
        data["max_target_length"] = min(data["max_target_length"], 10 if data["beams"] > 3 else 40)
    first = content["method"] == "i-lora"
    shorter = [
        *(("search.max_steps=8", "train.max_steps=3") if first else ("train.max_steps=8",)),
        "train.batch_size=8",
        "train.gradient_accumulation=1",
        "train.warmup=2",
        # One recipe with several test parts, one that writes.
        f"baselines={'[full]' if path.stem.endswith(('-mnli', '-xsum')) and first else '[]'}",
        f"data={json.dumps(data)}",
        "precision=fp32",
    ]
    if content["method"] == "adalora":
        shorter += ["cut.begin=2", "cut.interval=1", "cut.end=6"]
    elif content["method"] == "igu-lora":
        shorter += ["smooth.window=1", "cut.begin=0.3", "cut.end=0.8", "cut.interval=0.2"]
    else:
        shorter.append("measure.scoring_batch_size=8")
    # As many ranks for each matrix as the paper has, on fewer matrices; a share of parameters is taken of rank 1.
    matrices = {"deberta-v3-base": 72, "roberta-large": 144, "qwen2.5-0.5b": 168, "bart-large": 192}
    tiny = {"deberta-v3-base": 12, "roberta-large": 12, "qwen2.5-0.5b": 7, "bart-large": 32}
    name = next(name for name in matrices if path.stem.startswith(name))
    asked = str(content["budget"])
    if asked.startswith("rank="):
        shorter.append(f"budget=rank={int(asked[5:]) * tiny[name] // matrices[name]}")
    elif asked.endswith("%"):
        shorter.append("budget=keep=50%")
    result = run(load_recipe(path, [f"model={model}", *shorter]), tmp_path / "out")
    for found in result.results.values():
        assert list(found["metrics"]) == content["metrics"]
        assert list(found["more"]) == names[1:]
    assert len(result.plan.ranks) == tiny[name]
    assert 0 < result.plan.total_rank <= content["triplets"]["initial_rank"] * tiny[name]


def test_what_the_papers_and_scripts_say_stands_in_the_recipes() -> None:
    read = {f"{path.parent.name}/{path.stem}": load_recipe(path) for path in RECIPES}
    warmup = {
        "mnli": 0.0116,
        "rte": 0.0513,
        "qnli": 0.0305,
        "mrpc": 0.1,
        "qqp": 0.0352,
        "sst2": 0.0198,
        "cola": 0.0149,
        "stsb": 0.0222,
    }
    for task, share in warmup.items():
        assert read[f"adalora/deberta-v3-base-{task}"].train.warmup == share
    xsum = read["adalora/bart-large-xsum"]
    assert xsum.scale * xsum.triplets.initial_rank == pytest.approx(32)
    assert (xsum.data.max_length, xsum.data.max_target_length, xsum.data.beams, xsum.train.warmup) == (768, 64, 8, 3000)
    part = read["i-lora/bart-large-xsum"].data
    assert (part.train_split, part.test_split, part.beams) == ("train", "validation", 8)
    assert (part.sample.train, part.sample.test) == (0.2, 0.2)
    for name, recipe in read.items():
        assert "full" in recipe.baselines
        if name.endswith("mnli"):
            assert list(recipe.data.test_parts.values()) == ["validation_matched", "validation_mismatched"]


def test_the_files_are_what_the_script_writes() -> None:
    sys.path.insert(0, "recipes")
    try:
        from write_paper_recipes import written
    finally:
        sys.path.remove("recipes")
    found = written()
    assert set(found) == set(RECIPES)
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("variants", "recipes"), ABLATIONS.items())
def test_an_ablation_is_one_command(variants: str, recipes: tuple[str, ...], tmp_path: Path) -> None:
    paths = [PAPERS / f"{recipe}.yaml" for recipe in recipes]
    found = read_variants(PAPERS / f"{variants}.yaml")
    assert not found[0].overrides
    sweep = read_sweep(paths, [], found, key=None, methods=None, seeds=(0,), folder=tmp_path)
    assert len(sweep.cells()) == len(paths) * len(found)
    text = (PAPERS / "README.md").read_text()
    assert f"lorank recipes copy {variants} {' '.join(recipes)}\n" in text
    files = [f"{Path(name).name}.yaml" for name in (*recipes, variants)]
    assert f"lorank sweep {' '.join(files[:-1])} --variants {files[-1]}" in text


@pytest.mark.parametrize(
    ("recipe", "override"),
    [("i-lora/deberta-v3-base-cola", "measure.intervals=4"), ("adalora/deberta-v3-base-cola", "smooth.score=ratio")],
)
def test_more_ablations_are_an_override(recipe: str, override: str) -> None:
    assert f"`{override}`" in (PAPERS / "README.md").read_text()
    load_recipe(PAPERS / f"{recipe}.yaml", override.split())


def test_recipes_of_the_comparison_can_be_read() -> None:
    for path in Path("recipes/compare").glob("*.yaml"):
        load_recipe(path)
