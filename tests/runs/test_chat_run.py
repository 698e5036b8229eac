"""Whole runs on chat, completion and text: what is trained, stopped, saved and refused."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import BAD, GOOD, save_tiny, sentence, tiny_writer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    set_seed,
)

from lorank.compare.grid import Grid
from lorank.compare.grid_checks import check_grid
from lorank.errors import DataError, LorankError, LorankWarning, OutputError, RecipeError
from lorank.evaluation.question import Question
from lorank.evaluation.run_evaluation import run_evaluation
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe
from lorank.recipe.search_length import search_steps
from lorank.runs.data_file import DataFile
from lorank.runs.prepare import prepare
from lorank.runs.run import run
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import IGNORED
from lorank.training import allocation_stage, plan_stage
from lorank.training.sft_trainer import SFTStageTrainer, check_rows_apart

QUIET = Console(quiet=True)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} [SEP]{% endgeneration %}"
    "{% else %}[CLS] {{ m.content }} very {% endif %}{% endfor %}"
)


@pytest.fixture
def chat_model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama, wide enough to be quantised, that was given a chat template."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.1, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    folder = save_tiny(LlamaForCausalLM(config), tiny_folder, tmp_path / "chat", eos_token="[SEP]")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    source, path = random.Random(0), tmp_path / "chats.jsonl"
    lines = []
    for _ in range(60):
        mood, word = source.choice(((GOOD, "kind"), (BAD, "cold")))
        told = [
            {"role": "user", "content": sentence(source, mood)},
            {"role": "assistant", "content": f"the day was {word}"},
        ]
        lines.append(json.dumps({"messages": told}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def recipe_of(chat_model: Path, chats: Path) -> Callable[..., Recipe]:
    def make(method: str = "lora", data: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        content: dict[str, Any] = {
            "model": str(chat_model), "method": method, "budget": "r=1", "checkpoint_every": 4,
            "data": {"train": str(chats), "task": "chat", "max_length": 32, **(data or {})},
            "train": {"max_steps": 8, "batch_size": 8, "learning_rate": 1e-2, "scheduler": "constant", "warmup": 0},
        }  # fmt: skip
        if method in ("i-lora", "igu-lora", "adalora"):
            content["triplets"] = {"initial_rank": 2}
        if method == "i-lora":
            content |= {"measure": {"scoring_batch_size": 4}, "preset": "paper", "search": {"max_steps": 6}}
        if method == "igu-lora":
            content |= {"measure": {"every": 1}, "train": {**content["train"], "max_steps": 20}}
        for key, value in changes.items():
            content[key] = (
                {**content[key], **value} if isinstance(value, dict) and key in content and key != "model" else value
            )
        return make_recipe(content)

    return make


def losses_of(adapter: Path, base: Path, chats: Path) -> tuple[float, int]:
    """Mean loss of the assistant's tokens, by plain transformers and PEFT, one chat at a time."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    total, count = 0.0, 0
    for line in chats.read_text().splitlines():
        made = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = made["input_ids"].masked_fill(torch.as_tensor(made["assistant_masks"]) == 0, IGNORED)
        with torch.no_grad():
            loss = model(made["input_ids"], labels=labels).loss
        targets = int((labels[:, 1:] != IGNORED).sum())
        total, count = total + float(loss) * targets, count + targets
    return total / count, count


@pytest.mark.parametrize(
    "method",
    ["i-lora", *(pytest.param(name, marks=pytest.mark.long) for name in ("igu-lora", "sensitivity-lora", "lora"))],
)
def test_a_chat_recipe_gives_an_adapter(
    method: str, recipe_of: Callable[..., Recipe], chat_model: Path, chats: Path, tmp_path: Path
) -> None:
    result = run(recipe_of(method, {"test": str(chats), "eval": 0.2}), tmp_path / "out", QUIET)
    found = result.results[method]
    assert found["adapter_parameters"] <= result.plan.budget_parameters
    loss, targets = losses_of(tmp_path / "out" / "adapter", chat_model, chats)
    assert targets == 60 * 5  # four words and the end
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["metrics"]["log_likelihood"] == pytest.approx(-loss, rel=1e-4)
    assert 0 <= found["metrics"]["token_accuracy"] <= 1
    assert set(found["more"]) == {"eval"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "adapter").chat_template == TEMPLATE


def test_no_test_part_is_needed(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of()
    result = run(recipe, tmp_path / "out", QUIET)
    assert result.results["lora"]["metrics"] == {}
    assert result.results["lora"]["loss"] is None
    assert "not tested" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    with pytest.raises(DataError, match="to compare methods, a test part is needed"):
        check_grid(Grid({"chat": recipe.model_dump(mode="json")}, ("r=1",), ("lora",), (0, 1), {}, tmp_path / "grid"))


def test_the_best_adapter_is_kept_also_when_a_finished_stage_is_read_again(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """A rate that is too high: the loss on data.eval rises, and training ends early."""
    options = {"patience": 2, "eval_every": 2, "learning_rate": 0.3, "max_steps": 40}
    recipe = recipe_of(data={"eval": 0.2}, train=options)
    result = run(recipe, tmp_path / "out", QUIET)
    folder = tmp_path / "out" / "train"
    newest = max(folder.glob("checkpoint-*"), key=lambda one: int(one.name[11:]))
    state = json.loads((newest / "trainer_state.json").read_text())
    losses = {one["step"]: one["eval_loss"] for one in state["log_history"] if "eval_loss" in one}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 4 < 40
    assert result.results["lora"]["more"]["eval"]["loss"] == pytest.approx(losses[best], rel=1e-5)
    kept = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("adapter", "evaluation.json"):
        path = tmp_path / "out" / name
        path.rename(tmp_path / f"away-{name}")
    again = run(recipe, tmp_path / "out", QUIET)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == kept
    assert again.results == result.results
    assert "with the lowest one is kept" in (tmp_path / "out" / "adapter" / "README.md").read_text()


@pytest.mark.long
def test_new_tokens_of_a_template(
    recipe_of: Callable[..., Recipe], chat_model: Path, chats: Path, tmp_path: Path
) -> None:
    """Their rows are trained, and everything that reads the adapter knows them."""
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE.replace("very", "<turn>"))
    data = {"chat_template": str(template), "test": str(chats)}
    model = {"name": str(chat_model), "new_tokens": ["<turn>"]}
    result = run(recipe_of("i-lora", data, model=model), tmp_path / "out", QUIET)
    adapter = tmp_path / "out" / "adapter"
    row = AutoTokenizer.from_pretrained(adapter)("<turn>", add_special_tokens=False)["input_ids"]
    assert len(row) == 1
    saved = load_file(adapter / "adapter_model.safetensors")
    assert any("token_adapter" in key for key in saved)
    asked = Question(str(adapter), data=DataFile(chats, task="chat", max_length=32))
    measured = run_evaluation(asked, console=QUIET)["results"]["adapter"]["data"]["test"]
    assert measured["loss"] == pytest.approx(result.results["i-lora"]["loss"], rel=1e-5)


def test_a_template_that_takes_too_much_is_said_once(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ 'x' * 2000000000 }}")
    with pytest.raises(RecipeError, match=r"^data.task chat: the chat template takes more than 500 MB [^\n]*$"):
        run(recipe_of(data={"chat_template": str(tmp_path / "own.jinja")}), tmp_path / "out", QUIET)


def test_another_template_is_another_run(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE)
    recipe = recipe_of(data={"chat_template": str(template)})
    run(recipe, tmp_path / "out", QUIET)
    template.write_text(TEMPLATE.replace("very", "rather"))
    with pytest.raises(OutputError, match="the data changed since this run began: chat template"):
        run(recipe, tmp_path / "out", QUIET)


@pytest.mark.parametrize("data", [{"packing": True}, pytest.param({"padding_free": True}, marks=pytest.mark.long)])
def test_rows_without_padding_train_as_padded_ones(
    data: dict[str, Any], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """One step on all chats at once: the adapter is the same however they are put together."""
    found = []
    for number, more in enumerate(({"eval": 0.2}, {**data, "eval": 0.2})):
        one_step = {
            "batch_size": 60,
            "eval_every": 1,
            "max_steps": 1,
            "max_grad_norm": 0,
            "optimizer": "sgd",
            "learning_rate": 1.0,
        }
        result = run(recipe_of(data=more, train=one_step), tmp_path / str(number), QUIET)
        state = json.loads((tmp_path / str(number) / "train" / "checkpoint-1" / "trainer_state.json").read_text())
        shown = [one["eval_loss"] for one in state["log_history"] if "eval_loss" in one]
        assert shown == [pytest.approx(result.results["lora"]["more"]["eval"]["loss"], rel=1e-4)]
        found.append(load_file(tmp_path / str(number) / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert any(tensor.abs().max() > 1e-3 for key, tensor in found[0].items() if "lora_B" in key)
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, rtol=1e-3, atol=1e-6)


def test_models_in_which_packed_rows_see_each_other_are_refused() -> None:
    """OPT counts positions by the attention mask, which packed rows do not have."""
    set_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    packing = DataSection(train="x", task="chat", packing=True)
    opt = OPTForCausalLM(
        OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64, init_std=0.3)
    )
    with pytest.raises(RecipeError, match=r"data\.packing: in OPTForCausalLM rows .* see each other"):
        check_rows_apart(opt, packing)
    check_rows_apart(opt, DataSection(train="x", task="chat"))
    for dtype in (torch.float32, torch.bfloat16):
        llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32, initializer_range=0.3)).to(dtype)
        check_rows_apart(llama.train(), packing)
        assert llama.training


def test_a_packed_search_counts_packed_rows(recipe_of: Callable[..., Recipe]) -> None:
    whole = {"max_steps": None, "epochs": 8, "batch_size": 4}
    steps = []
    for data in ({}, {"packing": True}):
        asked = recipe_of("i-lora", data, train=whole, search={"max_steps": None, "share": 0.3})
        recipe, prepared = prepare(asked, ("i-lora",))
        rows = len(prepared.training_rows(prepared.data.train))
        stage = recipe.deciding_stage
        assert stage.max_steps == search_steps(stage, recipe.train, recipe.measure, 0.3, 8 * math.ceil(rows / 4))
        steps.append(stage.max_steps)
    assert steps[1] < steps[0]


@pytest.mark.parametrize("method", ["i-lora", pytest.param("igu-lora", marks=pytest.mark.long)])
def test_what_trains_on_a_quantised_base_is_fp32(
    method: str, recipe_of: Callable[..., Recipe], chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFTTrainer rounds it to bf16. The base stays in 4 bit."""
    seen = []
    for module in (plan_stage, allocation_stage):

        def trained(own: Any = module.train_stage, **options: Any) -> Any:
            ended = own(**options)
            seen.append({p.dtype for p in options["model"].parameters() if p.requires_grad})
            seen.append(
                {p.dtype for n, p in options["model"].named_parameters() if n.endswith("q_proj.base_layer.weight")}
            )
            return ended

        monkeypatch.setattr(module, "train_stage", trained)
    recipe = recipe_of(
        method, {"packing": True}, model={"name": str(chat_model), "quantization": "4bit", "dtype": "bf16"}
    )
    run(recipe, tmp_path / "out", QUIET)
    assert seen == [{torch.float32}, {torch.uint8}] * (2 if method == "i-lora" else 1)


def test_what_cannot_be_is_refused_before_weights_are_loaded(
    recipe_of: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorank.training.prepared.load_task_model", None)
    writer = tiny_writer("encoder-decoder", tiny_folder, tmp_path / "bart")
    with pytest.raises(LorankError, match="is an encoder-decoder; give summarization"):
        prepare(recipe_of(model=str(writer)), ("lora",))
    with pytest.raises(RecipeError, match=r"train\.patience: there is nothing to evaluate on"):
        recipe_of(train={"patience": 2})
    with pytest.raises(RecipeError, match=r"train\.patience: igu-lora cuts ranks while it trains"):
        recipe_of("igu-lora", {"eval": 0.1}, train={"patience": 2})
    with pytest.raises(RecipeError, match=r"search\.eval_every: only train is evaluated"):
        recipe_of("i-lora", {"eval": 0.1}, search={"eval_every": 2})
    with pytest.raises(LorankError, match="lm_head is the language model's head"):
        prepare(recipe_of(target_modules=["q_proj", "lm_head"]), ("lora",))


@pytest.mark.long
def test_an_evaluation_set_of_other_tasks(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny_recipe(method="lora", data={"eval": 0.2}, train={"patience": 1, "eval_every": 2})
    result = run(recipe, tmp_path / "out", QUIET)
    assert set(result.results["lora"]["more"]) == {"eval"}
    assert set(result.results["lora"]["more"]["eval"]["metrics"]) == set(result.results["lora"]["metrics"])


def _streamed(chats: Path, tmp_path: Path) -> dict[str, Any]:
    """A data set as on the hub: a folder with splits."""
    folder, lines = tmp_path / "hub", chats.read_text().splitlines()
    folder.mkdir()
    for name, part in {"train": lines[:44], "validation": lines[44:52], "test": lines[52:]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    return {
        "train": None,
        "name": str(folder),
        "stream": True,
        "scoring": "validation",
        "eval": "test",
        "test_split": "test",
    }


@pytest.mark.parametrize(
    "method",
    [
        "i-lora",
        pytest.param("igu-lora", marks=pytest.mark.long),
        pytest.param("sensitivity-lora", marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_a_stream_is_trained_on_and_resumed(
    method: str, recipe_of: Callable[..., Recipe], chats: Path, chat_model: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(method, {**_streamed(chats, tmp_path), "packing": True})
    result = run(recipe, tmp_path / "out", QUIET)
    assert result.plan.spent == result.results[method]["adapter_parameters"]
    assert "Trained on a stream" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    kept = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    newest = max((tmp_path / "out" / "train").glob("checkpoint-*"), key=lambda one: int(one.name[11:]))
    for path in (newest, tmp_path / "out" / "adapter", tmp_path / "out" / "evaluation.json"):
        path.rename(tmp_path / f"away-{path.name}")
    again = run(recipe, tmp_path / "out", QUIET)
    assert again.results[method]["loss"] == result.results[method]["loss"]
    for key, tensor in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, kept[key])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"role": "user", "content": "x"}], "streamed example 44 cannot be made into tokens"),
        pytest.param(
            [{"role": "user", "content": "day " * 40}, {"role": "assistant", "content": "x"}],
            "no streamed example has a token",
            marks=pytest.mark.long,
        ),
    ],
)
def test_streams_that_teach_nothing(
    rows: list[dict[str, str]], words: str, recipe_of: Callable[..., Recipe], chats: Path, tmp_path: Path
) -> None:
    data = _streamed(chats, tmp_path)
    path = tmp_path / "hub" / "train.jsonl"
    kept = path.read_text().splitlines() if "44" in words else []
    path.write_text("\n".join([*kept, json.dumps({"messages": rows})]))
    with pytest.raises(DataError, match=words):
        run(recipe_of(data=data), tmp_path / "out", QUIET)


def test_a_row_of_a_stream_that_has_another_form_is_named(
    recipe_of: Callable[..., Recipe], chats: Path, tmp_path: Path
) -> None:
    data = _streamed(chats, tmp_path)
    path = tmp_path / "hub" / "train.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], json.dumps({"messages": []}), *lines[5:]]))
    with pytest.raises(DataError, match=r"streamed example 5 has .* as messages"):
        run(recipe_of(data=data), tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ({"scoring": None}, {}, "stream needs scoring"),
        ({"eval": 0.1}, {}, "no share of a stream"),
        ({"padding_free": True}, {}, "packing in place of padding_free"),
        ({"name": None, "train": "x"}, {}, "a file is read whole"),
        ({}, {"train": {"max_steps": None}}, r"train\.max_steps: a stream"),
    ],
)
def test_what_a_stream_needs(
    data: dict[str, Any],
    more: dict[str, Any],
    words: str,
    recipe_of: Callable[..., Recipe],
    chats: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_of(data={**_streamed(chats, tmp_path), "test_split": None, **data}, **more)


@pytest.mark.parametrize("method", ["lora", pytest.param("igu-lora", marks=pytest.mark.long)])
def test_a_step_that_is_not_finite_is_left_out(
    method: str, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's trainer weighs tokens over micro-batches, and keeps means of its own."""
    compute = SFTStageTrainer.compute_loss

    def spoiled(self: Any, *args: Any, **options: Any) -> Any:
        return compute(self, *args, **options) * (float("nan") if self.state.global_step == 2 else 1.0)

    monkeypatch.setattr(SFTStageTrainer, "compute_loss", spoiled)
    recipe = recipe_of(method, train={"on_nonfinite": "skip", "gradient_accumulation": 2, "batch_size": 4})
    with pytest.warns(LorankWarning, match="optimizer steps were skipped, the first is step 3"):
        results = run(recipe, tmp_path / "out", QUIET).results
    assert results[method]["skipped_steps"] == [3]
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
