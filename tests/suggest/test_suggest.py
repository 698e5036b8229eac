import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lorank.errors import BudgetError, OutputError, TrainingError
from lorank.recipe.files import make_recipe
from lorank.recipe.learning_rates import plain_rate_key
from lorank.recipe.method_sections import merged
from lorank.suggest.answer import Answer, answer_of
from lorank.suggest.question import Question, check_parameters
from lorank.suggest.rates import TriedRates
from lorank.suggest.short_runs import ShortRuns
from lorank.suggest.snippet import snippet_of
from lorank.suggest.suggest import suggest

TINY = {"ranks": (1, 2, 3, 4), "steps": 10, "seeds": 2, "fraction": 0.4, "factors": (0.3, 1.0, 3.0)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an answer that the first test makes."""
    return tmp_path_factory.mktemp("suggest") / "whole"


def test_a_tiny_model_is_answered_and_the_snippet_can_be_used(finished: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(search={"learning_rate": 5e-2})
    answer = suggest(recipe, Question(**TINY), finished)
    assert {path.name for path in (finished / "parts").iterdir()} >= {"rates.json", "triplets-2.json", "seed-1.json"}
    assert {"suggestion.json", "suggestion.yaml", "suggestion.png"} <= {path.name for path in finished.iterdir()}
    made = json.loads((finished / "suggestion.json").read_text())
    assert [one["budget"] for one in made["budgets"]] == ["r=1", "r=2", "r=3", "r=4"]
    assert made["budgets"][-1]["lost"] == 0
    assert sum(made["examples"].values()) == 120
    held = [np.array(json.loads((finished / f"parts/seed-{seed}.json").read_text())["losses"]) for seed in (0, 1)]
    assert held[0].shape == (4, made["examples"]["judged"])
    assert made["budgets"][0]["loss"] == pytest.approx(np.stack(held).mean((0, 2))[0])
    content = yaml.safe_load((finished / "suggestion.yaml").read_text())
    assert content == made["recipe"]
    changed = make_recipe(merged(recipe.model_dump(exclude_unset=True), content))
    assert changed.budget == made["budget"] == f"r={answer.ranks[answer.to_start_with]}"
    assert changed.search.learning_rate == pytest.approx(made["rates"]["triplets"]["chosen"], rel=0.05)


@pytest.mark.long
def test_a_run_that_was_stopped_continues_and_answers_the_same(
    finished: Path,
    tiny_recipe: Any,
    tiny_data: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = suggest(tiny_recipe(search={"learning_rate": 5e-2}), Question(**TINY), finished)
    lines = Path(tiny_data["test"]).read_text().splitlines()
    (tmp_path / "few.tsv").write_text("\n".join(lines[:6]))  # the test part is not looked at
    recipe = tiny_recipe(search={"learning_rate": 5e-2}, data={"test": str(tmp_path / "few.tsv")})
    calls, of_ranks = [], ShortRuns.of_ranks

    def stopped(self: ShortRuns, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # rates, the first seed, and then
            raise KeyboardInterrupt
        return of_ranks(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ShortRuns, "of_ranks", stopped)
        with pytest.raises(KeyboardInterrupt):
            suggest(recipe, Question(**TINY), tmp_path / "two")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "two" / "parts").iterdir()}
    assert "seed-0.json" in kept
    assert "seed-1.json" not in kept
    assert suggest(recipe, Question(**TINY), tmp_path / "two").record() == whole.record()
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "two" / "parts").iterdir()}.items()
    with pytest.raises(OutputError, match=r"another question \(steps differ\)"):
        suggest(recipe, Question(**{**TINY, "steps": 11}), tmp_path / "two")
    other = tiny_recipe(search={"learning_rate": 1e-2}, data={"test": str(tmp_path / "few.tsv")})
    with pytest.raises(OutputError, match=r"another question \(triplets differ\)"):
        suggest(other, Question(**TINY), tmp_path / "two")


def test_too_little_time_and_ranks_without_room_are_refused(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="lora", baselines=["i-lora"], search={"learning_rate": 0.1})
    with pytest.raises(TrainingError, match="minutes are too few: 2 seeds take"):
        suggest(recipe, Question(**{**TINY, "minutes": 1e-6}), tmp_path / "out")
    assert not list(tmp_path.glob("out/parts/*[0-9].json"))
    with pytest.raises(BudgetError, match="rank 32 costs no more than rank 16"):
        check_parameters((1, 16, 32), (48, 768, 768))


def answer() -> Answer:
    """Of losses that fall to rank 4 and no further."""
    noise = np.random.default_rng(0).normal(0, 0.05, (4, 2, 100)) * [[[1]], [[1]], [[0.01]], [[0.01]]]
    losses = np.array([0.9, 0.7, 0.5, 0.5])[:, None, None] + noise
    tried = TriedRates((0.01, 0.03, 0.1), (1.0, 0.5, 2.0))
    made = answer_of(Question(ranks=(1, 2, 4, 8)), (10, 20, 40, 80), (0.02, 0.02, 0.01234, 0.01), losses)
    return replace(made, lora={1: tried, 8: tried}, triplets=tried, steps=20, seeds=(0, 1))


def test_an_answer_in_words_names_what_is_shown_and_what_the_curve_says() -> None:
    words = " ".join(answer().words())
    assert words.startswith("Uniform rank 4 (40 parameters) is enough: against rank 8 it loses ")
    assert "0.0100 was allowed (2%)" in words
    assert "All of this is of 20 steps" in words
    spread = np.full((4, 2, 50), 0.5) + np.random.default_rng(0).normal(0, 0.2, (4, 2, 50))
    unsure = answer_of(Question(ranks=(1, 2, 4, 8)), (10, 20, 40, 80), (0.01,) * 4, spread)
    assert unsure.words()[0].startswith("No rank below 8 is shown to be enough")
    assert any("no more than their noise" in line for line in unsure.words())
    # Nothing is shown: the lowest mean is what to start with, and not the largest rank.
    uneven = spread + np.array([0.03, -0.03, 0.0, 0.0])[:, None, None]
    unsure = answer_of(Question(ranks=(1, 2, 4, 8)), (10, 20, 40, 80), (0.01,) * 4, uneven)
    assert (unsure.chosen, unsure.to_start_with, unsure.record()["budget"]) == (3, 1, "r=2")
    assert "So the keys below start with rank 2, which is not shown to be right." in unsure.words()
    diverged = np.where(np.arange(4)[:, None, None] == 3, np.nan, spread)
    with pytest.raises(TrainingError, match="rank 8 has a loss that is not finite"):
        answer_of(Question(ranks=(1, 2, 4, 8)), (10, 20, 40, 80), (0.01,) * 4, diverged)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"method": "lora"}, {"train": {"learning_rate": 0.012}}),
        (
            {"method": "lora", "baselines": ["i-lora"]},
            {"train": {"learning_rate": 0.012}, "search": {"learning_rate": 0.03}},
        ),
        (
            {"method": "igu-lora", "baselines": ["lora"], "triplets": {"initial_rank": 8}},
            {"train": {"learning_rate": 0.03}, "baselines": {"lora": {"train": {"learning_rate": 0.012}}}},
        ),
        (
            {"method": "i-lora", "baselines": {"lora": {"train": {"learning_rate": 0.1}}}},
            {
                "train": {"learning_rate": 0.012},
                "baselines": {"lora": {"train": {"learning_rate": 0.012}}},
                "search": {"learning_rate": 0.03},
            },
        ),
    ],
    ids=lambda value: value.get("method", ""),
)
def test_each_method_gets_the_rate_of_its_stages(recipe: dict, expected: dict, tiny_recipe: Any) -> None:
    assert snippet_of(tiny_recipe(**recipe), answer()).content == {"budget": "r=4", **expected}


def test_a_rate_of_plain_lora_is_never_given_to_triplets(tiny_recipe: Any) -> None:
    """As `lorank init` writes recipes; without --triplets the rate of `train` is not known."""
    recipe = tiny_recipe(method="igu-lora", preset=None, baselines={"lora": {"train": {"learning_rate": 5e-4}}})
    plain = replace(answer(), triplets=None)
    own = {"baselines": {"lora": {"train": {"learning_rate": 0.012}}}}
    assert snippet_of(recipe, plain).content == {"budget": "r=4", **own}
    assert snippet_of(tiny_recipe(method="igu-lora", preset=None), plain).content == {"budget": "r=4"}
    ends = replace(plain, lora={8: TriedRates((0.01, 0.03), (1.0, 0.5))}, rate_key=plain_rate_key(recipe))
    assert any("set baselines.lora.train.learning_rate to it and ask again" in line for line in ends.words())
