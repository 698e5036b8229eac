import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorank import LorankError
from lorank.engine.options import RankOptions, ScoringSetChoices, StartOptions
from lorank.errors import RecipeError
from lorank.methods import METHODS
from lorank.methods.choose import choices_in
from lorank.recipe.files import load_recipe, make_recipe
from lorank.recipe.recipe import Recipe
from lorank.recipe.sections import EXPERT, SCHEDULERS, TrainingSection, section_kinds
from lorank.recipe.shipped import shipped_recipes

MINIMAL = {"model": "some/model", "budget": "r=2", "data": {"train": "a.tsv", "test": "b.tsv"}}


def written(tmp_path: Path, content=MINIMAL) -> Path:
    (tmp_path / "recipe.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def test_overrides_are_applied_as_yaml(tmp_path: Path) -> None:
    overrides = [
        "train.epochs=0.5",
        "target_modules=[query, value]",
        "cut.stop_when_stable.share=0.2",
        "model.dropout=0.1",
        "baselines.eva.measure.examples=5",
        "budget=0.33M",
        "seed=7",
    ]
    recipe = load_recipe(written(tmp_path, {**MINIMAL, "baselines": ["lora", "eva"]}), overrides)
    assert recipe.train.epochs == 0.5
    assert recipe.target_modules == ("query", "value")
    choices = recipe.choices()
    assert isinstance(choices, ScoringSetChoices)
    assert choices.cut.stop_when_stable is not None
    assert choices.cut.stop_when_stable.share == 0.2
    assert (recipe.model.name, recipe.model.dropout) == ("some/model", 0.1)
    assert recipe.baselines == {"lora": {}, "eva": {"measure": {"examples": 5}}}
    assert (recipe.budget, recipe.seed) == ("0.33M", 7)


def test_adaloras_own_names_lead_to_ours(tmp_path: Path) -> None:
    wrong = ["method=adalora", "tinit=200", "train.tfinal=500", "cut.deltaT=10"]
    with pytest.raises(RecipeError, match=r"(?s)tinit: .*cut\.begin.*train\.tfinal: .*cut\.end") as caught:
        load_recipe(written(tmp_path), wrong)
    assert "cut.deltaT: unknown key (did you mean cut.interval?)" in str(caught.value)


def test_an_unknown_key_hides_nothing_else(tmp_path: Path) -> None:
    content = {key: value for key, value in MINIMAL.items() if key != "budget"}
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            written(tmp_path, content), ["methd=eva", "bugdet=r=2", "measure.componets=3", "train.epoch=1", "seed=-1"]
        )
    assert str(caught.value).splitlines() == [
        "methd: unknown key (did you mean method?)",
        "bugdet: unknown key (did you mean budget?)",
        "measure.componets: unknown key (did you mean expert.measure.components?)",
        "seed: Input should be greater than or equal to 0 (got -1)",
        "train.epoch: unknown key (did you mean train.epochs?)",
    ]


def test_a_budget_of_each_group_is_read_and_written_again(tmp_path: Path) -> None:
    path = written(tmp_path, {**MINIMAL, "budget": {"vision_model": "r=2", "language_model": 20_000}})
    recipe = load_recipe(path, ["budget.vision_model=r=4"])
    assert recipe.budget == {"vision_model": "r=4", "language_model": "20000"}
    again = make_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert recipe.of("lora").budget == recipe.budget
    with pytest.raises(RecipeError) as caught:
        make_recipe({**MINIMAL, "budget": {"vision_model": "x", "(": "r=1"}, "seed": -1})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["budget", "budget", "seed"]
    assert lines[0].startswith("budget: group 'vision_model': budget 'x' cannot be read")
    assert lines[1].startswith("budget: group '(' is no regular expression")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", r"did you mean train\.epochs\?"),
        ("trian.epochs=1", r"did you mean train\?"),
        ("learning_rate=1", r"did you mean (search|train)\.learning_rate\?"),
        ("cut.stop_when_stable.shar=1", r"cut\.stop_when_stable\.shar: .*did you mean cut\.stop_when_stable\.share\?"),
        ("measure.paramter_factor=signed", r"measure\.paramter_factor: .*did you mean measure\.parameter_factor\?"),
        ("method=ilora", r"did you mean i-lora\?"),
        ("preset=papr", r"did you mean paper\?"),
        ("train.epochs=soon", "valid number"),
        ("train.epochs=0", "greater than 0"),
        ("measure.fraction=1", "less than 1"),
        ("budget=0", "above zero"),
        ("budget=plenty", "cannot be read"),
        ("ranks={max_rank: 1, min_rank: 2}", "below ranks.min_rank"),
        ("data.test=null", "test file is missing"),
        ("data.name=glue", "not both"),
        ("train", "key=value"),
        ("train.scheduler=cosin", r"did you mean cosine\?"),
        ("train.epochs=[", "not YAML"),
        ("smooth.ema_decay=0.5", r"write it as expert\.smooth\.ema_decay"),
        ("expert.smooth.emma_decay=0.5", r"did you mean expert\.smooth\.ema_decay\?"),
        ("expert.smoth.ema_decay=0.5", r"did you mean smooth\?"),
        (
            "expert.measure.folds=4",
            r"expert\.measure\.folds: method i-lora has no such key, it is of sensitivity-lora, gradient",
        ),
        ("expert.measure.fraction=0.2", r"is no option for experts; write it as measure\.fraction"),
        ("measure.estimator=gram", r"method i-lora has no such key, it is of igu-lora, adalora, sensitivity-lora"),
        ("methd=igu-lora", r"^methd: unknown key \(did you mean method\?\)$"),
        ("measure=3", "give keys and values"),
        (
            "baselines={eva: {measure: {exmples: 3}}}",
            r"baselines\.eva\.measure\.exmples: .*did you mean measure\.examples\?",
        ),
        ("baselines={eva: {metrics: [f1]}}", r"baselines\.eva\.metrics: is for all methods alike"),
        ("baselines={eva: 3}", r"baselines\.eva: "),
        ("baselines=[i-lora]", "is the recipe's method already"),
        ("baselines=[evva]", r"did you mean eva\?"),
        ("format=3", "format"),
        ("model.nme=x", r"did you mean model\.name\?"),
        # As other tools call it.
        ("train.r=8", r"did you mean budget, such as r=8\?"),
        ("train.rank=8", r"did you mean budget, such as r=8\?"),
        ("target_rank=8", r"^target_rank: unknown key \(did you mean budget, such as r=8\?\)$"),
        ("val_set_size=0.1", r"did you mean data\.eval\?"),
        ("train.eval_batch_size=4", r"unknown key; the loss on data\.eval is measured with train\.batch_size"),
        ("init_r=8", r"did you mean triplets\.initial_rank\?"),
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


@pytest.mark.parametrize("cut", [{"stop_when_stable": {}}, {"curve": "cubic"}])
def test_scores_after_a_stage_can_neither_end_nor_prune_it(cut) -> None:
    with pytest.raises(LorankError, match="use 'during'"):
        make_recipe({**MINIMAL, "expert": {"measure": {"when": "after"}}, "cut": cut})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(LorankError, match="model: missing"):
        make_recipe({"budget": "r=2", "data": MINIMAL["data"]})


@pytest.mark.parametrize(("method", "preset"), [(m.name, p) for m in METHODS.values() for p in m.presets])
def test_a_preset_fills_in_and_the_recipe_overrides_it(method: str, preset: str) -> None:
    content = {**MINIMAL, "method": method, "preset": preset}
    recipe = make_recipe(content)
    for section, options in choices_in(METHODS[method].presets[preset]).items():
        for key, value in options:
            if key in options.model_fields_set:
                assert getattr(getattr(recipe, section), key) == value
    assert make_recipe({**content, "ranks": {"min_rank": 1}}).ranks == recipe.ranks.model_copy(update={"min_rank": 1})


def test_without_a_preset_the_methods_own_default_is_used_and_recorded() -> None:
    assert make_recipe(MINIMAL).preset == "loss-per-parameter"


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
    assert Recipe(**content, ranks=RankOptions(min_rank=1)).ranks.rank_by == make_recipe(content).ranks.rank_by
    with pytest.raises(RecipeError, match="preset 'nonsense' of"):
        Recipe(**{**content, "preset": "nonsense"})
    with pytest.raises(RecipeError, match=r"train\.learnin_rate: unknown key \(did you mean train\.learning_rate\?\)"):
        Recipe(**content, train={"learnin_rate": 1.0})


def test_schedules_are_those_of_transformers() -> None:
    from transformers import SchedulerType

    assert set(SCHEDULERS) == {one.value for one in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("method", ["i-lora", "igu-lora", "adalora"])
def test_where_the_regulariser_is_added_is_for_experts(method: str) -> None:
    content = {**MINIMAL, "method": method}
    assert make_recipe(content).choices().triplets.orthogonality_added == "before-clipping"
    recipe = make_recipe({**content, "expert": {"triplets": {"orthogonality_added": "after-clipping"}}})
    assert recipe.choices().triplets.orthogonality_added == "after-clipping"
    written = recipe.model_dump(mode="json")
    assert written["expert"]["triplets"] == {"orthogonality_added": "after-clipping"}
    assert make_recipe(written) == recipe
    with pytest.raises(RecipeError, match=r"write it as expert\.triplets\.orthogonality_added"):
        make_recipe({**content, "triplets": {"orthogonality_added": "after-clipping"}})


def test_what_search_leaves_out_is_as_in_train() -> None:
    recipe = make_recipe({**MINIMAL, "train": {"epochs": 1, "batch_size": 4}, "search": {"epochs": 2}})
    stage = recipe.deciding_stage
    assert (stage.epochs, stage.batch_size, recipe.train.epochs) == (2, 4, 1)
    assert make_recipe(recipe.model_dump(mode="json")).deciding_stage == stage
    assert make_recipe({**MINIMAL, "preset": "paper", "train": {"epochs": 1}}).deciding_stage.epochs == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "lora", "search": {"epochs": 1}}, "search: no method here has a first stage"),
        ({"method": "igu-lora", "search": {"epochs": 1}}, "search: no method here has a first stage"),
        (
            {"method": "lora", "smooth": {"window": 1}},
            "smooth: method lora has no such choice; it has triplets, ranks, start",
        ),
        (
            {"method": "sensitivity-lora", "triplets": {"orthogonality": 1.0}},
            "has no such key, it is of i-lora",
        ),
        (
            {"method": "adalora", "cut": {"begin": 9, "end": 1.0}, "ranks": {"max_rank": 2}},
            "are for budget_in: parameters",
        ),
    ],
)
def test_sections_that_the_method_does_not_have_are_refused(content, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe({**MINIMAL, **content})


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ({"train": {"lr": 1e-3}}, "train.learning_rate"),
        ({"train": {"warmup_ratio": 0.1}}, "train.warmup"),
        ({"train": {"per_device_train_batch_size": 4}}, "train.batch_size"),
        ({"lora_r": 8}, "budget, such as r=8"),
        ({"lora_alpha": 16}, "scale, which is alpha / r"),
        ({"train": {"seed": 1}}, "seed"),
        ({"data": {**MINIMAL["data"], "eval_split": "dev"}}, "data.eval"),
        ({"model": {"name": "m", "load_in_4bit": True}}, "model.quantization"),
        ({"sequence_len": 512}, "data.max_length"),
    ],
)
def test_names_of_other_tools_are_understood(content: dict[str, Any], meant: str) -> None:
    with pytest.raises(RecipeError, match=rf"unknown key \(did you mean {re.escape(meant)}\?\)"):
        make_recipe({**MINIMAL, **content})


class TestBaselines:
    def test_a_scale_of_another_kind_is_shared(self) -> None:
        recipe = make_recipe({**MINIMAL, "baselines": ["lora", "eva"], "start": {"scale_by": "target"}})
        assert {recipe.of(name).start.scale_by for name in recipe.baselines} == {"target"}

    def test_what_all_share_and_what_is_the_methods_own(self) -> None:
        recipe = make_recipe(
            {
                **MINIMAL,
                "baselines": ["lora", "adalora", "eva", "sensitivity-lora"],
                "ranks": {"rank_by": "score-per-parameter", "max_rank": 4},
                "triplets": {"initial_rank": 5, "orthogonality": 0.5},
                "train": {"epochs": 2, "learning_rate": 1e-3},
                "search": {"learning_rate": 1e-2},
                "seed": 3,
            }
        )
        for name in recipe.baselines:
            own = recipe.of(name)
            assert (own.method, own.preset) == (name, METHODS[name].default_preset)
            assert (own.seed, own.triplets.initial_rank, own.train.epochs) == (3, 5, 2)
            assert own.ranks.rank_by == "score"
            assert own.baselines == {}
            assert own.search is None
        assert recipe.of("lora").ranks.max_rank == recipe.of("eva").ranks.max_rank == 4
        assert recipe.of("adalora").ranks.max_rank is None  # it counts in ranks
        # Triplets that are kept need the rate of triplets.
        assert recipe.of("adalora").train.learning_rate == 1e-2
        assert recipe.of("lora").train.learning_rate == 1e-3
        assert recipe.of(recipe.method) is recipe

    def test_sections_of_their_own(self) -> None:
        baselines = {"eva": {"measure": {"examples": 5}, "expert": {"measure": {"components": 3}}}, "lora": None}
        recipe = make_recipe({**MINIMAL, "baselines": {**baselines, "adalora": {"train": {"learning_rate": 1.0}}}})
        assert recipe.of("eva").measure.examples == 5
        assert recipe.of("eva").measure.components == 3
        assert recipe.of("adalora").train.learning_rate == 1.0
        assert make_recipe(recipe.model_dump(mode="json")) == recipe

    def test_what_is_written_means_the_same(self) -> None:
        own = {"i-lora": {"train": {"batch_size": 8, "learning_rate": 0.01}}}
        recipe = make_recipe({**MINIMAL, "method": "eva", "search": {"epochs": 2.5}, "baselines": own})
        again = make_recipe(recipe.model_dump(mode="json"))
        assert again.of("i-lora").deciding_stage == recipe.of("i-lora").deciding_stage
        assert recipe.of("i-lora").deciding_stage.learning_rate == 0.01

    def test_sections_may_be_objects(self) -> None:
        own = {"lora": {"train": TrainingSection(batch_size=8)}, "igu-lora": {"start": StartOptions(factors="kept")}}
        recipe = Recipe(**MINIMAL, train={"epochs": 7}, search={"learning_rate": 0.5}, baselines=own)
        assert (recipe.of("lora").train.epochs, recipe.of("lora").train.batch_size) == (7, 8)
        assert recipe.of("igu-lora").train.learning_rate == 0.5

    def test_a_search_of_a_baseline(self) -> None:
        recipe = make_recipe({**MINIMAL, "method": "lora", "baselines": ["i-lora"], "search": {"epochs": 9}})
        assert recipe.of("i-lora").deciding_stage.epochs == 9


def test_experts_options_are_those_that_no_preset_and_no_recipe_sets() -> None:
    """`triplets`, `measure`, `smooth`, `cut`: what is set somewhere is a key, what is not is under `expert`."""
    every, used = set(), set()
    for method in METHODS.values():
        for name, kind in section_kinds(method).items():
            every |= {(name, key) for key in kind.model_fields}
        for preset in method.presets.values():
            used |= {(name, key) for name, options in choices_in(preset).items() for key in options.model_fields_set}
    for path in [*Path("examples").glob("*.yaml"), *Path("recipes").rglob("*.yaml"), *shipped_recipes().values()]:
        content = yaml.safe_load(path.read_text())
        used |= {(name, key) for name in EXPERT for key in content.get(name) or ()}
    in_question = {(name, key) for name, key in every if name in EXPERT}
    expert = {(name, key) for name, keys in EXPERT.items() for key in keys}
    assert expert <= in_question
    assert not expert & used
    # Where a method looks, and at how much, and an early end of a search are for everybody.
    assert in_question - expert - used == {("measure", "batch_size"), ("cut", "stop_when_stable")}


def test_what_train_has_wrong_is_said_once() -> None:
    with pytest.raises(RecipeError) as told:
        make_recipe({**MINIMAL, "train": {"learningrate": 1.0}})
    assert str(told.value) == "train.learningrate: unknown key (did you mean train.learning_rate?)"


@pytest.mark.parametrize(
    "content",
    [
        {"format": 1, "train": {"epochs": 1}}, {"stage2": {}, "baselines": 5}, {"stage2": {}, "baselines": [["a"]]},
        {"preset": ["a"]}, {"stage2": {}, "preset": ["a"]}, {"expert": {5: {}}}, {"expert": {"measure": {5: 1}}},
        {"baselines": [["lora"]]}, {"baselines": [{"lora": {}}]}, {"baselines": {"eva": {5: 1}}},
        {"baselines": {"igu-lora": {"start": "kept"}}, "search": {"epochs": 1}}, {"train": 5}, {"search": 5}, {"format": 3},
        {"format": 2, "stage1": {}}, {"train": {"epochs": float("inf")}}, {"scale": float("nan")},
        {"method": "lora", "ranks": {"rank_by": "score-per-parameter"}},
    ],
)  # fmt: skip
def test_odd_content_is_an_error_of_recipes(content) -> None:
    with pytest.raises(RecipeError):
        make_recipe({**MINIMAL, **content})


@pytest.mark.parametrize(
    "content", [{"train": None}, {"expert": None}, {"expert": {"measure": None}}, {"measure": None}]
)
def test_nothing_is_as_if_it_were_left_out(content) -> None:
    assert make_recipe({**MINIMAL, **content}) == make_recipe(MINIMAL)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the key 'budget' is given twice"):
        load_recipe(written(tmp_path, "model: m\nbudget: r=2\nbudget: r=4\n"))


@pytest.mark.parametrize(
    "content",
    [
        {"baselines": "lora"}, {"baselines": 5}, {"baselines": {"igu-lora": [1]}}, {"train": 5, "search": {"learning_rate": 1}},
        {"baselines": {"igu-lora": {"start": "kept"}}, "search": {"epochs": 1}},
    ],
)  # fmt: skip
def test_odd_content_with_another_method(tmp_path: Path, content) -> None:
    with pytest.raises(RecipeError):
        load_recipe(written(tmp_path, {**MINIMAL, **content}), ["method=igu-lora", "baselines.x=1"])


def test_metrics_are_names_or_one_name() -> None:
    content = {"model": "m", "budget": "r=1", "data": {"train": "a.tsv", "test": "b.tsv"}}
    assert make_recipe({**content, "metrics": "accuracy"}).metrics == ("accuracy",)
    with pytest.raises(RecipeError, match="metrics: the list is empty; give one name at least"):
        make_recipe({**content, "metrics": []})
    with pytest.raises(RecipeError, match=r"metrics: Input should be a list, \[one, two\] \(got 3\)"):
        make_recipe({**content, "metrics": 3})
