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

from lorank.errors import DataError, RecipeError
from lorank.models.loading import load_without_weights, longest_input, task_type_of
from lorank.recipe.files import load_recipe, make_recipe
from lorank.recipe.recipe import Recipe
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
    recipe, said = recipe_of(tiny_folder, small(tmp_path, 20)), list[str]()
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
    given = recipe_of(tiny_folder, small(tmp_path, 20), measure={"scoring_batch_size": 32})
    with pytest.raises(DataError, match="less than one batch of 32"):
        prepare(given, ("i-lora",))


@pytest.mark.filterwarnings("ignore:.*scoring examples are in the training data too")
def test_what_was_shrunk_is_recorded_and_a_run_agrees_with_itself(tiny_folder: Path, tmp_path: Path) -> None:
    sections = {"triplets": {"initial_rank": 2}, "train": {"max_steps": 2}, "start": {"factors": "kept"}}
    recipe = recipe_of(tiny_folder, small(tmp_path, 20), **sections)
    out = tmp_path / "out"
    result = run(recipe, out, Console(quiet=True))
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    sizes = (written["measure"]["scoring_batch_size"], written["train"]["batch_size"])
    assert (written["data"]["max_length"], *sizes) == (32, 2, 18)
    assert run(recipe, out, Console(quiet=True)) == result
    assert run(load_recipe(out / "recipe.yaml"), out, Console(quiet=True)) == result
