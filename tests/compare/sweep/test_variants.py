"""Which variants a sweep has: files and values, what is refused before anything runs, methods that are run by default."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorank.compare.sweep.variants import Sweep, read_sweep, read_values, read_variants
from lorank.errors import ComparisonError, RecipeError


@pytest.fixture
def recipe_file(tiny_folder: Path, tiny_data: dict[str, str], tmp_path: Path) -> Path:
    content = {
        "model": str(tiny_folder), "budget": "keep=50%", "data": {**tiny_data, "max_length": 16}, "metrics": ["accuracy"],
        "triplets": {"initial_rank": 2},
    }  # fmt: skip
    path = tmp_path / "mood.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def over(recipe: Path, text: str, *overrides: str, methods: tuple[str, ...] | None = None) -> Sweep:
    key, variants = read_values(text)
    return read_sweep(
        [recipe], overrides, variants, key=key, methods=methods, seeds=(0, 1), folder=recipe.parent / "sweep"
    )


def named(recipe: Path, variants: dict[str, Any], *overrides: str) -> Sweep:
    path = recipe.parent / "variants.yaml"
    path.write_text(yaml.safe_dump(variants, sort_keys=False))
    return read_sweep(
        [recipe], overrides, read_variants(path), key=None, methods=None, seeds=(0,), folder=recipe.parent / "sweep"
    )


def test_the_budget_follows_the_initial_rank_where_it_is_a_share_of_it(recipe_file: Path) -> None:
    # Rank 1 in every module of the tiny BERT costs 448, so half of rank r costs 224 r.
    sweep = over(recipe_file, "triplets.initial_rank=2,4,8")
    assert sweep.methods == ("i-lora", "lora")
    assert {cell.budget for cell in sweep.cells()} == {"keep=50%"}
    uniform = [cell for cell in sweep.cells() if cell.method == "lora" and cell.seed == 0]
    assert [sweep.recipe(cell).budget for cell in uniform] == ["448", "896", "1792"]
    for cell in sweep.cells():
        assert sweep.recipe(cell).seed == cell.seed
        assert sweep.recipe(cell).triplets.initial_rank == int(cell.task.partition("=")[2])
    # Every other budget stays.
    fixed = over(recipe_file, "triplets.initial_rank=2,4", "budget=r=1")
    assert {fixed.recipe(cell).budget for cell in fixed.cells()} == {"448"}


def test_uniform_lora_is_run_where_values_change_it(recipe_file: Path) -> None:
    assert over(recipe_file, "budget=r=1,r=2").methods == ("i-lora", "lora")
    assert {cell.budget for cell in over(recipe_file, "budget=r=1,r=2").cells()} == {"r=1", "r=2"}
    assert over(recipe_file, "train.epochs=1,2").methods == ("i-lora", "lora")
    assert over(recipe_file, "measure.nodes=paper,gradient").methods == ("i-lora",)
    assert over(recipe_file, "measure.nodes=paper,gradient", methods=("lora", "i-lora")).methods == ("lora", "i-lora")


def test_values_are_yaml() -> None:
    key, variants = read_values("target_modules=[query, value],[dense],null")
    assert key == "target_modules"
    assert [one.overrides for one in variants] == [
        ('target_modules=["query", "value"]',), ('target_modules=["dense"]',), ("target_modules=null",)
    ]  # fmt: skip
    assert [one.name for one in read_values("train.learning_rate=1e-3,2.0e-3")[1]] == ["1e-3", "0.002"]
    assert read_values("a.b=x/y,z")[1][0].folder == "b=x-y"


def test_named_variants_are_run_by_their_own_method(recipe_file: Path) -> None:
    sweep = named(
        recipe_file, {"full": None, "one stage!": ["start.factors=kept", "search=null"], "lora": ["method=lora"]}
    )
    assert [(cell.task, cell.method) for cell in sweep.cells()] == [
        ("mood/full", "i-lora"), ("mood/one-stage", "i-lora"), ("mood/lora", "lora")
    ]  # fmt: skip
    assert sweep.recipe(sweep.cells()[1]).keeps_triplets


def test_refusals_name_the_variant_and_come_at_once(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="2 things have to be mended:") as caught:
        named(recipe_file, {"full": [], "a": ["measure.nodse=paper"], "b": ["train.epochs=1", "cut.begin=0.2"]})
    assert "variant a: measure.nodse: unknown key (did you mean measure.nodes?)" in str(caught.value)
    assert "variant b: cut.begin: method i-lora has no such key" in str(caught.value)
    # What is wrong with the recipe itself is said once, and is no variant's.
    with pytest.raises(RecipeError, match=r"^train\.epoch: unknown key \(did you mean train\.epochs\?\)$"):
        over(recipe_file, "triplets.initial_rank=2,4", "train.epoch=1")
    for variants, message in (
        ({"full": []}, "has 1 variant; give the reference first"),
        ({"full": [], "a": "train.epochs=1"}, "'a' is 'train.epochs=1'; allowed: a list of overrides"),
        ({"full": [], "a": ["train.epochs"]}, "not of the form key=value"),
        ({"full": [], "a b": ["train.epochs=1"], "a-b": ["train.epochs=2"]}, "would share a folder; rename"),
        ({"full": [], "!": ["train.epochs=1"]}, "without a letter or a digit"),
        ({"full": [], "a": ["baselines=[eva]"]}, "variants 'full' and 'a' are the same for mood; leave one"),
        ({"full": [], "a": ["seed=3"]}, "seeds are those of --seeds"),
    ):
        with pytest.raises((ComparisonError, RecipeError), match=message):
            named(recipe_file, variants)
    with pytest.raises(ComparisonError, match="'eva' has choices of its own, and is neither"):
        named(recipe_file, {"full": [], "a": ["train.epochs=1"]}, "eva:train.learning_rate=1")
    for text, message in (
        ("triplets.initial_rank=2", "a key and two values or more"),
        ("triplets.initial_rank", "a key and two values or more"),
        ("=1,2", "a key and two values or more"),
        ("train.epochs=1,1", "1 is given twice"),
        ("train.epochs=[1,", "the values are not YAML"),
        ("method=i-lora,lora", "methods are compared by --methods"),
    ):
        with pytest.raises(ComparisonError, match=message):
            over(recipe_file, text)
    with pytest.raises(ComparisonError, match=r"method 'evaa' is unknown \(did you mean eva\?\)"):
        over(recipe_file, "train.epochs=1,2", methods=("evaa",))
    with pytest.raises(RecipeError, match="no such file; give a YAML file with a list of overrides"):
        read_variants(tmp_path / "nothing.yaml")
