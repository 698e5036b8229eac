import sys
from pathlib import Path

import pytest
import yaml

from lorank import LorankError
from lorank.engine.options import RankOptions
from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.recipe.recipe import Recipe, load_recipe, make_recipe, sections_of

MINIMAL = {"model": "some/model", "budget": "r=2", "data": {"train": "a.tsv", "test": "b.tsv"}}


def written(tmp_path: Path, content=MINIMAL) -> Path:
    (tmp_path / "recipe.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def test_overrides_are_applied_as_yaml(tmp_path: Path) -> None:
    overrides = [
        "stage2.epochs=0.5",
        "targets=[query, value]",
        "stage1.stop_when_stable.share=0.2",
        "budget=0.33M",
        "seed=7",
    ]
    recipe = load_recipe(written(tmp_path), overrides)
    assert recipe.stage2.epochs == 0.5
    assert recipe.targets == ("query", "value")
    assert recipe.stage1.stop_when_stable is not None
    assert recipe.stage1.stop_when_stable.share == 0.2
    assert (recipe.budget, recipe.seed) == ("0.33M", 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage2.epoch=1", r"did you mean stage2\.epochs\?"),
        ("stge2.epochs=1", r"did you mean stage2\?"),
        ("learning_rate=1", r"did you mean stage\d\.learning_rate\?"),
        ("stage1.stop_when_stable.shar=1", r"did you mean stage1\.stop_when_stable\.share\?"),
        ("scoring.paramter_factor=signed", r"did you mean scoring\.parameter_factor\?"),
        ("method=ilora", r"did you mean i-lora\?"),
        ("preset=papr", r"did you mean paper\?"),
        ("stage2.epochs=soon", "valid number"),
        ("stage2.epochs=0", "greater than 0"),
        ("scoring.fraction=1", "less than 1"),
        ("budget=0", "above zero"),
        ("budget=plenty", "cannot be read"),
        ("allocation={max_rank: 1, min_rank: 2}", "below allocation.min_rank"),
        ("data.test=null", "test file is missing"),
        ("data.name=glue", "not both"),
        ("stage2", "key=value"),
        ("stage2.scheduler=cosin", r"did you mean cosine\?"),
        ("stage2.epochs=[", "not YAML"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(LorankError, match=message):
        load_recipe(written(tmp_path), [override])


@pytest.mark.parametrize("content", ["- a\n- b\n", "model: [", "", "text"])
def test_files_that_are_no_recipe_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(LorankError):
        load_recipe(written(tmp_path, content))
    with pytest.raises(LorankError, match="no such recipe"):
        load_recipe(tmp_path / "other.yaml")


@pytest.mark.parametrize("stage1", [{"stop_when_stable": {}}, {"pruning": "cubic"}])
def test_scores_after_stage_1_can_neither_end_nor_prune_it(stage1) -> None:
    with pytest.raises(LorankError, match="use 'during'"):
        make_recipe({**MINIMAL, "scoring": {"when": "after"}, "stage1": stage1})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(LorankError, match="model: missing"):
        make_recipe({"budget": "r=2", "data": MINIMAL["data"]})


@pytest.mark.parametrize(("method", "preset"), [(m.name, p) for m in METHODS.values() for p in m.presets])
def test_a_preset_fills_in_and_the_recipe_overrides_it(method: str, preset: str) -> None:
    content = {**MINIMAL, "method": method, "preset": preset}
    recipe = make_recipe(content)
    for section, choices in sections_of(METHODS[method], METHODS[method].presets[preset]).items():
        for key, value in choices.items():
            assert getattr(getattr(recipe, section), key) == value
    assert make_recipe({**content, "scoring": {"intervals": 3}}).scoring.intervals == 3


def test_without_a_preset_the_methods_own_default_is_used_and_recorded() -> None:
    assert make_recipe(MINIMAL).preset == "paper"


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*.yaml")), ids=str)
def test_shipped_recipes_are_valid(path: Path) -> None:
    load_recipe(path)


def test_a_written_recipe_reads_back() -> None:
    recipe = make_recipe(MINIMAL)
    assert make_recipe(recipe.model_dump(mode="json")) == recipe


def test_the_recipe_page_is_the_one_that_the_code_writes() -> None:
    sys.path.insert(0, "docs")
    from write_recipe_page import page

    assert Path("docs/recipe.md").read_text(encoding="utf-8") == page(), "run `python docs/write_recipe_page.py`"


@pytest.mark.parametrize(
    ("method", "preset"), [("i-lora", "loss-per-parameter"), ("igu-lora", "official"), ("adalora", None)]
)
def test_a_recipe_made_in_python_has_its_preset_too(method: str, preset: str | None) -> None:
    content = {**MINIMAL, "method": method, "preset": preset}
    assert Recipe(**content) == make_recipe(content)
    assert (
        Recipe(**content, allocation=RankOptions(min_rank=1)).allocation.rank_by
        == make_recipe(content).allocation.rank_by
    )
    with pytest.raises(RecipeError, match="preset 'nonsense' of"):
        Recipe(**{**content, "preset": "nonsense"})
    with pytest.raises(
        RecipeError, match=r"stage1\.learnin_rate: unknown key \(did you mean stage1\.learning_rate\?\)"
    ):
        Recipe(**content, stage1={"learnin_rate": 1.0})
