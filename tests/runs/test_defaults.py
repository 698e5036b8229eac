"""Short models and small data shrink what a recipe leaves out, with a line each; what it says itself is checked, not changed."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.conftest import save_tiny, tiny_writer
from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    LlamaConfig,
    OpenAIGPTConfig,
    OPTConfig,
    RobertaConfig,
)

from lorank.errors import DataError, LorankWarning, RecipeError
from lorank.models.loading import load_without_weights, task_type_of
from lorank.models.positions import longest_input
from lorank.recipe.files import load_recipe, make_recipe
from lorank.recipe.recipe import Recipe
from lorank.recipe.search_length import LEAST_STEPS, search_steps
from lorank.recipe.sections import TrainingSection
from lorank.runs.defaults import fit_to_data, fit_to_model
from lorank.runs.prepare import prepare
from lorank.runs.recipe_values import pretrained_of
from lorank.runs.run import run
from lorank.tasks.data import load_task_data


def recipe_of(folder: Path | str, data: dict[str, Any], **more: Any) -> Recipe:
    return make_recipe({"model": str(folder), "budget": "r=1", "data": data, **more})


def fitted_lengths(recipe: Recipe) -> tuple[int, int, list[str]]:
    kind, said = task_type_of(pretrained_of(recipe), writes=recipe.data.writes), list[str]()
    data = fit_to_model(recipe, load_without_weights(recipe.model.name, task_type=kind), kind, said.append).data
    return data.max_length, data.target_length if data.writes else 0, said


def test_a_default_length_is_cut_to_the_positions_and_one_that_is_given_is_refused(
    tiny_folder: Path, tiny_data: dict[str, str]
) -> None:
    assert fitted_lengths(recipe_of(tiny_folder, tiny_data)) == (
        32, 0, [f"data.max_length: 32 in place of 128, {tiny_folder} has no more positions"],
    )  # fmt: skip
    given = recipe_of(tiny_folder, {**tiny_data, "max_length": 64}, method="lora")
    assert fitted_lengths(given) == (64, 0, [])
    with pytest.raises(RecipeError, match=r"data\.max_length is 64, but .* has 32 positions; lower it"):
        prepare(given, ("lora",))


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ({}, (32, 32)),
        ({"max_length": 40}, (40, 24)),
        ({"max_target_length": 50}, (14, 50)),
        ({"max_target_length": 8}, (56, 8)),
        ({"max_length": 40, "max_target_length": 50}, (40, 50)),  # refused by the check
    ],
)
def test_a_decoder_has_room_for_prompt_and_target(
    given: dict[str, int], lengths: tuple[int, int], tiny_folder: Path, tmp_path: Path
) -> None:
    gpt = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    folder = save_tiny(GPT2LMHeadModel(gpt), tiny_folder, tmp_path, eos_token="[SEP]")
    recipe = recipe_of(folder, {"train": "a.jsonl", "test": "b.jsonl", "task": "gsm8k", **given})
    assert fitted_lengths(recipe)[:2] == lengths


def test_an_encoder_decoder_has_positions_for_each(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_writer("encoder-decoder", tiny_folder, tmp_path)
    config = BartConfig.from_pretrained(folder)
    config.max_position_embeddings = 48
    config.save_pretrained(folder)
    files = {"train": "a.jsonl", "test": "b.jsonl", "task": "gsm8k"}
    assert fitted_lengths(recipe_of(folder, files))[:2] == (48, 48)
    assert fitted_lengths(recipe_of(folder, {**files, "max_target_length": 16}))[:2] == (48, 16)


def test_positions_of_architectures(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    gpt = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    configs = {
        64: (
            BertConfig(**sizes, max_position_embeddings=64),
            RobertaConfig(**sizes, max_position_embeddings=66, pad_token_id=1),
            OPTConfig(**sizes, max_position_embeddings=64, word_embed_proj_dim=16),
            GPT2Config(**gpt),
            OpenAIGPTConfig(**gpt),
            GPTJConfig(**gpt, rotary_dim=4),
        ),
        None: (LlamaConfig(**sizes, max_position_embeddings=64),),
    }
    for positions, known in configs.items():
        for config in known:
            config.save_pretrained(tmp_path)
            assert longest_input(load_without_weights(str(tmp_path))) == positions, config.model_type


def small(tmp_path: Path, rows: int) -> dict[str, str]:
    for part in ("train", "test"):
        lines = [f"the day was {'fine' if k % 2 else 'dull'} {k}\t{k % 2}" for k in range(rows)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    return {part: str(tmp_path / f"{part}.tsv") for part in ("train", "test")}


def test_little_data_makes_batches_smaller(tiny_folder: Path, tmp_path: Path) -> None:
    recipe, said = recipe_of(tiny_folder, small(tmp_path, 20), preset="paper"), list[str]()
    data = load_task_data(recipe.data)
    found = fit_to_data(recipe, data, ("i-lora",), said.append)
    assert (found.measure.scoring_batch_size, found.search.batch_size) == (2, 18)
    assert said == [
        "measure.scoring_batch_size: 2 in place of 32, the scoring set has no more examples",
        "search.batch_size: 18 in place of 32, the training set without the scoring set has no more examples",
    ]
    assert fit_to_data(recipe, data, ("lora", "igu-lora"), said.append) == recipe
    scorer = fit_to_data(
        recipe_of(tiny_folder, small(tmp_path, 20), method="sensitivity-lora"), data, ("sensitivity-lora",), said.append
    )
    assert scorer.measure.examples == 20
    assert said[2:] == ["measure.examples: 20 in place of 256, the training data has no more"]
    given = recipe_of(tiny_folder, small(tmp_path, 20), preset="paper", measure={"scoring_batch_size": 32})
    with pytest.raises(DataError, match="less than one batch of 32"):
        prepare(given, ("i-lora",))


def shares(folder: Path | str, data: dict[str, str], **more: Any) -> Recipe:
    sections = {"preset": "loss-per-parameter", "train": {"max_steps": 150, "batch_size": 8}}
    return recipe_of(folder, data, **{**sections, "measure": {"scoring_batch_size": 8}, **more})


@pytest.mark.parametrize("train_steps", [40, 57, 150, 151, 1000, 12345])
@pytest.mark.parametrize(("batch", "scored_at_once"), [(32, 32), (8, 32), (32, 8)])
def test_a_search_costs_at_most_its_share(train_steps: int, batch: int, scored_at_once: int) -> None:
    """Steps and scoring passes of the search, and 0.3 of the passes of `train`: as many steps as that pays for."""
    recipe = shares("some/model", {"train": "a.tsv", "test": "b.tsv"}, measure={"scoring_batch_size": scored_at_once})
    train, search = TrainingSection(), TrainingSection(batch_size=batch)

    def cost(steps: int) -> int:
        scored = sum(step > int(0.5 * steps) for step in range(1, steps + 1))
        checks = sum(number & (number - 1) == 0 for number in range(1, scored + 1))
        return steps * batch + (scored + checks) * scored_at_once

    steps, allowed = search_steps(search, train, recipe.measure, 0.3, train_steps), 0.3 * train_steps * 32
    assert steps == min(LEAST_STEPS, train_steps) or cost(steps) <= allowed
    # One step more may be a scoring pass more: the most that fit, or at most two fewer.
    assert cost(steps + 3) > allowed


def test_the_length_of_a_search_is_written_down(tiny_folder: Path, tiny_data: dict[str, str]) -> None:
    data, said = load_task_data(recipe_of(tiny_folder, tiny_data).data), list[str]()
    recipe = shares(tiny_folder, tiny_data)
    # 27 steps, 14 scoring batches, 4 checks: 45 passes, 0.3 of 150.
    assert (recipe.deciding_stage.max_steps, recipe.search) == (27, None)
    found = fit_to_data(recipe, data, ("i-lora",), said.append)
    assert found.search.max_steps == 27
    assert said == ["search.max_steps: 27, so that it costs at most 30% of train, scoring included (search.share)"]
    again = make_recipe(found.model_dump(mode="json"))
    assert again.deciding_stage == found.deciding_stage
    assert fit_to_data(again, data, ("i-lora",), said.append) == found
    # In epochs: 120 texts in batches of 8, ten times, are 150 steps.
    epochs = shares(tiny_folder, tiny_data, train={"epochs": 10, "batch_size": 8})
    assert epochs.deciding_stage.epochs == pytest.approx(2.0)
    assert fit_to_data(epochs, data, ("i-lora",), said.append).search.max_steps == 27
    # What says the length itself, and a preset that is as long as train.
    for own in ({"epochs": 2}, {"max_steps": 80}, {"share": None}):
        stage = fit_to_data(shares(tiny_folder, tiny_data, search=own), data, ("i-lora",), said.append).deciding_stage
        assert (stage.max_steps, stage.epochs) == (own.get("max_steps", 150), own.get("epochs", 3.0))
    paper = fit_to_data(shares(tiny_folder, tiny_data, preset="paper"), data, ("i-lora",), said.append)
    assert (paper.search, paper.deciding_stage.max_steps) == (None, 150)
    asked = fit_to_data(shares(tiny_folder, tiny_data, search={"share": 0.5}), data, ("i-lora",), said.append)
    assert 42 <= asked.deciding_stage.max_steps <= 50
    assert make_recipe(asked.model_dump(mode="json")).deciding_stage == asked.deciding_stage
    with pytest.raises(RecipeError, match="search: share, and epochs or max_steps, both say how long it is"):
        shares(tiny_folder, tiny_data, search={"share": 0.2, "max_steps": 5})
    # Baselines: of one with a search of its own, and where I-LoRA is one.
    fresh = {"igu-lora": {"start": {"factors": "fresh"}}}
    both = fit_to_data(shares(tiny_folder, tiny_data, baselines=fresh), data, ("i-lora", "igu-lora"), said.append)
    assert (both.deciding_stage.max_steps, both.of("igu-lora").deciding_stage.max_steps) == (27, 150)
    own = {"preset": "loss-per-parameter", "search": {"learning_rate": 0.1}, "measure": {"scoring_batch_size": 8}}
    train = {"max_steps": 150, "batch_size": 8}
    asked = recipe_of(tiny_folder, tiny_data, method="lora", baselines={"i-lora": own}, train=train)
    stage = fit_to_data(asked, data, ("lora", "i-lora"), said.append).of("i-lora").deciding_stage
    assert (stage.max_steps, stage.learning_rate) == (27, 0.1)


@pytest.mark.long
def test_a_run_of_a_version_without_shares_is_continued(tiny_recipe: Any, tmp_path: Path) -> None:
    """Its recipe says no length: search and train were equally long."""
    sections = {"preset": "loss-per-parameter", "train": {"max_steps": 12}}
    quiet = Console(quiet=True)
    before = run(tiny_recipe(**sections, search={"share": None}), tmp_path, quiet)
    path = tmp_path / "recipe.yaml"
    written = yaml.safe_load(path.read_text())
    assert written.pop("search") == {"share": None}
    path.write_text(yaml.safe_dump(written))
    assert before.results["i-lora"]["search"]["steps"] == 12
    assert run(tiny_recipe(**sections), tmp_path, quiet) == before
    assert run(load_recipe(path), tmp_path, quiet) == before  # and its own recipe, again
    assert load_recipe(path).deciding_stage.max_steps == 12


@pytest.mark.filterwarnings("ignore:.*scoring examples are in the training data too")
def test_what_was_shrunk_is_recorded_and_a_run_agrees_with_itself(tiny_folder: Path, tmp_path: Path) -> None:
    sections = {"triplets": {"initial_rank": 2}, "train": {"max_steps": 2}, "start": {"factors": "kept"}}
    recipe = recipe_of(tiny_folder, small(tmp_path, 20), preset="paper", **sections)
    out = tmp_path / "out"
    with pytest.warns(LorankWarning, match="the scoring set is a single batch of 2 examples, so it is not known"):
        result = run(recipe, out, Console(quiet=True))
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    sizes = (written["measure"]["scoring_batch_size"], written["train"]["batch_size"])
    assert (written["data"]["max_length"], *sizes) == (32, 2, 18)
    assert run(recipe, out, Console(quiet=True)) == result
    assert run(load_recipe(out / "recipe.yaml"), out, Console(quiet=True)) == result
