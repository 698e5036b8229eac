"""Recipes of format 1: every one that the repository had, as it was then, and what it meant then."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorank.errors import LorankWarning, OutputError, RecipeError
from lorank.methods import METHODS
from lorank.methods.choose import choices_in
from lorank.recipe.files import load_recipe, make_recipe, upgrade_file
from lorank.recipe.format1 import is_format_1, upgraded
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import ScoringSet, TrainingSection

# Path -> the recipe of format 1, and for one of each kind `chosen`: what each of its methods made of it, and `alpha`: scale,
# initial rank, scale_by. Written by the last version that had format 1.
OLD: dict[str, Any] = json.loads(Path(__file__).with_name("format1.json").read_text(encoding="utf-8"))
MINIMAL = {"model": "some/model", "budget": "r=2", "data": {"train": "a.tsv", "test": "b.tsv"}}


@pytest.mark.parametrize("path", OLD)
def test_the_converted_recipe_is_the_one_that_the_repository_has_now(path: str) -> None:
    assert is_format_1(OLD[path]["recipe"])
    # This example leaves its preset to the default, which was another one then.
    then = ["preset=recommended"] if path == "examples/sensitivity-lora.yaml" else []
    converted, stands = (written(recipe) for recipe in (make_recipe(OLD[path]["recipe"]), load_recipe(path, then)))
    if converted["budget"] == "beta=0.5":
        converted["budget"] = "keep=50%"
    if path.startswith("src/lorank/recipes/"):
        # These say more now: another baseline, both parts of MNLI, a share of XSum, and what is known of scripts.
        for one in (converted, stands):
            for key in ("baselines", "checkpoint_every", "data", "scale"):
                del one[key]
            for stage_of in (one["train"], one["search"]):
                if stage_of:
                    del stage_of["warmup"]
    if path == "examples/quickstart.yaml":  # its search is shorter now, and is not ended early
        for one in (converted, stands):
            del one["search"], one["cut"]
    # Format 1 loaded every model in fp32; today the checkpoint decides.
    assert converted["model"].pop("dtype") == "fp32"
    assert stands["model"].pop("dtype") is None
    assert converted == stands


def written(recipe: Recipe) -> dict[str, Any]:
    """All that it says, `search` with what it takes from `train`."""
    return {**recipe.model_dump(mode="json"), "search": recipe.has_search and stage(recipe.deciding_stage)}


@pytest.mark.parametrize(
    ("path", "method"), [(path, name) for path, one in OLD.items() for name in one.get("chosen", ())]
)
def test_it_means_what_it_meant(path: str, method: str) -> None:
    """Choices, limits, stages and data of each method are those of format 1: scores and plan cannot differ."""
    recipe = make_recipe(OLD[path]["recipe"])
    assert [recipe.scale, recipe.triplets.initial_rank, getattr(recipe.start, "scale_by", None)] == OLD[path]["alpha"]
    assert meaning(recipe.of(method)) == OLD[path]["chosen"][method]


def meaning(recipe: Recipe) -> dict[str, Any]:
    """What format 1 called the same."""
    found: dict[str, Any] = {"preset": recipe.preset, "ranks": recipe.ranks.model_dump()}
    assert found["ranks"].pop("within") is None  # what came later is at its default
    choices, measure = recipe.choices(), recipe.measure
    if choices is not None:
        found["options"] = {
            key: value
            for name, options in choices_in(choices).items()
            if name != "ranks"
            for key, value in options.model_dump(mode="json").items()
        }
        # Before there was a choice, recipes added the regulariser where the default adds it.
        assert found["options"].pop("orthogonality_added", "before-clipping") == "before-clipping"
        found["options"]["ending"] = {"kept": "continue", "fresh": "retrain"}[found["options"].pop("factors")]
        found |= {"initial_rank": recipe.triplets.initial_rank, "allocates": stage(recipe.deciding_stage)}
        if isinstance(measure, ScoringSet):
            found["options"]["scoring_batch_size"] = measure.scoring_batch_size
            found |= {"fraction": measure.fraction, "batch_size": measure.scoring_batch_size}
    elif measure is not None:
        values = measure.model_dump()
        assert not values.pop("per_output", False)
        assert values.pop("modules_at_once", 1) == 1
        found |= {key: values.pop(key) for key in ("examples", "batch_size")}
        found["options"] = values
    if not recipe.keeps_triplets:
        found["trains"] = stage(recipe.train)
    return found


def stage(section: TrainingSection) -> dict[str, Any]:
    """What format 1 could say of a stage."""
    found = section.model_dump(mode="json")
    for key in ("optimizer", "loraplus_lr_ratio", "eval_every", "patience"):  # what came later is at its default
        assert found.pop(key) is None
    assert found.pop("on_nonfinite") == "stop"
    return found


def test_a_file_runs_with_one_line_that_names_the_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "stage1": {"max_steps": 5}, "targets": ["query"]}))
    with pytest.warns(
        LorankWarning, match=r"format 1; .*stage1.* are now .*target_modules, search, train.*recipe upgrade"
    ) as told:
        recipe = load_recipe(path, ["stage2.max_steps=7"])
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert recipe.search is not None
    assert (recipe.deciding_stage.max_steps, recipe.train.max_steps, recipe.target_modules) == (5, 7, ("query",))


def test_a_file_is_converted_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    content = {**MINIMAL, "method": "igu-lora", "model_dropout": 0.0, "pruning": {"ending": "retrain", "epsilon": 0.1}}
    text = f"# What this is.\n# And why.\n{yaml.safe_dump(content)}# lost\n"
    path.write_text(text)
    kept = upgrade_file(path)
    assert kept.read_text() == text
    assert path.read_text().startswith("# What this is.\n# And why.\nformat: 2\n")
    assert load_recipe(path) == make_recipe(content)
    new = yaml.safe_load(path.read_text())
    assert new["model"] == {"name": "some/model", "dropout": 0.0, "dtype": "fp32"}
    assert new["start"] == {"factors": "fresh"}
    assert new["expert"] == {"smooth": {"epsilon": 0.1}}
    with pytest.raises(RecipeError, match="nothing is to be converted"):
        upgrade_file(path)
    path.write_text(text)
    with pytest.raises(OutputError, match="is there already"):
        upgrade_file(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage1": {}, "search": {}}, "stage1 is of recipe format 1; it is search now"),
        ({"stage2": {"epochs": 1}, "train": {}}, r"stage2\.epochs is of recipe format 1; it is train\.epochs now"),
        ({"stage2": {"skip": True}, "train": {}}, r"stage2\.skip .* it is start\.factors now"),
        ({"scoring": {"source": "training"}, "train": {}}, r"it is expert\.measure\.source now"),
        (
            {"stage1": {}, "stage2": {}, "train": {}},
            r"train is of recipe format 2, this recipe is of format 1; convert it",
        ),
        ({"stage1": 3}, "stage1: give keys and values"),
        ({"stage1": {"epoch": 1}}, r"stage1\.epoch: unknown key \(did you mean stage1\.epochs\?\)"),
        ({"scoring": {"nodse": "paper"}}, r"scoring\.nodse: unknown key \(did you mean scoring\.nodes\?\)"),
        ({"stage2": {}, "method": "ilora"}, "did you mean i-lora"),
        ({"stage2": {}, "preset": "papr"}, "did you mean paper"),
    ],
)
def test_what_cannot_be_converted_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe({**MINIMAL, **changes})


def test_sections_of_other_methods_are_left_out() -> None:
    """A recipe that a run of format 1 wrote has every section, at its defaults."""
    content = {
        **MINIMAL,
        "method": "lora",
        "calibration": {"examples": 256},
        "pruning": {"every": 10},
        "scoring": {"every": 1},
    }
    assert upgraded(content) == {**MINIMAL, "model": {"name": "some/model", "dtype": "fp32"}, "method": "lora"}
    assert METHODS["lora"].scorer is None


def test_uniform_ranks_stay_uniform_and_baselines_are_ranked_as_they_were() -> None:
    limits = {"rank_by": "score-per-parameter", "scope": "layer", "max_rank": 4}
    assert make_recipe({**MINIMAL, "method": "lora", "allocation": limits}).ranks.rank_by == "score"
    recipe = make_recipe({**MINIMAL, "method": "igu-lora", "baselines": ["i-lora"], "stage1": {"epochs": 1}})
    assert recipe.of("i-lora").ranks.rank_by == "score-per-parameter"
    looked = {"examples": 10, "batch_size": 3}
    recipe = make_recipe({**MINIMAL, "method": "magnitude", "baselines": ["gradient"], "calibration": looked})
    assert {key: getattr(recipe.of("gradient").measure, key) for key in looked} == looked


def test_the_default_preset_is_that_of_its_time() -> None:
    assert make_recipe(MINIMAL).preset == "loss-per-parameter"
    assert make_recipe({**MINIMAL, "stage1": {"epochs": 2}}).preset == "paper"
    assert make_recipe({**MINIMAL, "stage1": {"epochs": 2}, "preset": "loss-per-parameter"}).search.says_length
    old = make_recipe({**MINIMAL, "method": "eva", "baselines": ["i-lora"], "stage1": {"epochs": 2}})
    assert (old.of("i-lora").preset, old.of("i-lora").deciding_stage.epochs) == ("paper", 2)
    # A record of a run that names no preset of a baseline; one of this version does.
    asked = {**MINIMAL, "method": "eva", "baselines": ["i-lora"]}
    assert make_recipe(asked).of("i-lora").preset == "loss-per-parameter"
    assert make_recipe({**asked, "resolved": {"data": {}}}).of("i-lora").preset == "paper"


def test_the_record_of_a_run_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**MINIMAL, "stage2": {}, "resolved": {}}))
    with pytest.raises(RecipeError, match="is the record of a run"):
        upgrade_file(tmp_path / "recipe.yaml")


def test_links_line_ends_and_marks(tmp_path: Path) -> None:
    old = f"\ufeff---\n# Why.\n{yaml.safe_dump({**MINIMAL, 'stage2': {}})}".replace("\n", "\r\n").encode()
    (tmp_path / "real.yaml").write_bytes(old)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    kept = upgrade_file(tmp_path / "link.yaml")
    assert kept.read_bytes() == old
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text().startswith("# Why.\nformat: 2\n")
