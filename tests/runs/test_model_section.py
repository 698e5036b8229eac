"""The `model` section of a recipe: whole runs on bf16, 4-bit and 8-bit bases, and what is refused before anything is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, TaskType
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorank.compare.cells import Cell, fingerprint_of
from lorank.errors import OutputError, RecipeError
from lorank.findings import SeveralFindings
from lorank.models.adapted_model import load_adapted
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained
from lorank.models.quantization import keep_gradients
from lorank.module_names import is_adapter_tensor
from lorank.plan import RankPlan
from lorank.runs.prepare import prepare
from lorank.runs.prune_adapter import prune_adapter
from lorank.runs.run import run
from lorank.runs.score_recipe import score_recipe
from lorank.training import allocation_stage, plan_stage

QUIET = Console(quiet=True)


def base_bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if not is_adapter_tensor(name))


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        pytest.param("i-lora", None, marks=pytest.mark.long),
        ("i-lora", "4bit"),
        pytest.param("igu-lora", "4bit", marks=pytest.mark.long),
        pytest.param("igu-lora", "8bit", marks=pytest.mark.long),
        ("sensitivity-lora", "4bit"),
    ],
)
def test_a_narrow_base_stays_as_small_as_it_was_under_fp32_adapters(
    method: str, quantization: str | None, recipe_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    trained = list[int]()
    for module in (plan_stage, allocation_stage):
        save = module.save_adapter

        def saved(model: Any, directory: Path, tokenizer: Any = None, save: Any = save) -> None:
            trained.append(base_bytes(model))
            save(model, directory, tokenizer)

        monkeypatch.setattr(module, "save_adapter", saved)
    recipe = recipe_on(method, {"quantization": quantization})
    result = run(recipe, tmp_path / "out", QUIET)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["model"]["dtype"] == "bf16"
    base = Pretrained(recipe.model.name, quantization=quantization)
    loaded: Any = load_task_model(base, TaskType.CAUSAL_LM, ()).model
    assert trained == [base_bytes(loaded)]
    adapter = tmp_path / "out" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in tensors.values()) == result.plan.spent
    # As its user loads it, with what the model card says.
    card = (adapter / "README.md").read_text()
    code = card.partition("base = ")[2].splitlines()[0].partition("(")[2].removesuffix(")")
    from transformers import BitsAndBytesConfig

    own = {"BitsAndBytesConfig": BitsAndBytesConfig, "load": AutoModelForCausalLM.from_pretrained}
    plain = PeftModel.from_pretrained(eval(f"load({code})", own), str(adapter))
    keep_gradients(plain)  # packed for this processor, its layers would round in another way
    ids = torch.arange(5, 17)[None]
    ours = PeftModel.from_pretrained(loaded, str(adapter))
    assert torch.equal(plain(ids).logits, ours(ids).logits)
    with plain.disable_adapter():
        assert not torch.equal(plain(ids).logits, ours(ids).logits)


@pytest.mark.long
def test_a_run_that_lost_its_end_goes_on_to_the_same_plan_and_adapter(recipe_on: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe, out = recipe_on("igu-lora", {"quantization": "4bit"}), tmp_path / "out"
    run(recipe, out, QUIET)
    plan, adapter = RankPlan.load(out / "plan.json"), load_file(out / "adapter" / "adapter_model.safetensors")
    for name in ("plan.json", "scores.safetensors", "evaluation.json", "metrics.json"):
        (out / name).unlink()
    shutil.rmtree(out / "adapter")
    shutil.rmtree(out / "train" / "checkpoint-20")
    run(recipe, out, QUIET)
    again = load_file(out / "adapter" / "adapter_model.safetensors")
    assert RankPlan.load(out / "plan.json") == plan
    assert again.keys() == adapter.keys()
    assert all(torch.equal(again[key], adapter[key]) for key in adapter)


def test_a_run_of_an_earlier_version_goes_on_in_fp32_and_says_so(recipe_on: Any, tmp_path: Path) -> None:
    out, path = tmp_path / "out", tmp_path / "out" / "recipe.yaml"
    run(recipe_on("lora", {"dtype": "fp32"}), out, QUIET)
    stands = yaml.safe_load(path.read_text())
    for key in ("dtype", "quantization", "attention", "revision"):
        del stands["model"][key]
    path.write_text(yaml.safe_dump(stands))
    for name in ("evaluation.json", "metrics.json"):
        (out / name).unlink()
    with pytest.raises(OutputError, match=r"belongs to another recipe: .*dtype"):
        run(recipe_on("lora", {"dtype": "bf16"}), out, QUIET)
    with (tmp_path / "said").open("w") as file:
        run(recipe_on("lora"), out, Console(file=file, width=300))
    said = (tmp_path / "said").read_text()
    assert "model.dtype: fp32, as" in said
    assert "the checkpoint is in bf16" in said


def test_what_a_narrow_base_means_is_said_in_a_line(recipe_on: Any, tmp_path: Path) -> None:
    def said(**model: Any) -> str:
        with (tmp_path / "said").open("w") as file:
            prepare(recipe_on("lora", model), ("lora",), Console(file=file, width=300))
        return (tmp_path / "said").read_text()

    assert "model.dtype: bf16, as the checkpoint; adapters and scores are fp32" in said()
    assert "dtype" not in said(dtype="fp32")
    assert "give precision=fp16, or model.dtype=bf16" in said(dtype="fp16")
    pytest.importorskip("bitsandbytes")
    assert "loaded in 4bit, its matrix products are in bf16 (model.dtype)" in said(quantization="4bit")


@pytest.mark.parametrize(
    ("method", "quantization"),
    [("gradient", None), ("gradient", "8bit"), ("magnitude", "4bit"), ("eva", "8bit"), ("sensitivity-lora", "4bit")],
)
def test_a_narrow_base_is_scored_before_training_in_fp32(
    method: str, quantization: str | None, recipe_on: Any, tmp_path: Path
) -> None:
    if quantization is not None:
        pytest.importorskip("bitsandbytes")
    scores = score_recipe(recipe_on(method, {"quantization": quantization}), tmp_path / "scores.safetensors", QUIET)
    assert len(scores.unit_costs) == 14
    plain = score_recipe(recipe_on(method, {"dtype": "fp32"}), tmp_path / "plain.safetensors", QUIET)
    assert scores.unit_costs == plain.unit_costs
    for name, values in scores.scores.items():
        assert values.dtype in ("float32", "float64")
        assert abs(values - plain.scores[name]).max() <= 0.5 * abs(plain.scores[name]).max()


@pytest.mark.parametrize("quantization", ["4bit", pytest.param("8bit", marks=pytest.mark.long)])
def test_an_adapter_on_a_narrow_base_is_pruned_with_its_recipe(
    quantization: str, recipe_on: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = recipe_on("lora", {"quantization": quantization}, budget="r=2")
    run(recipe, tmp_path / "out", QUIET)
    plan, measured = prune_adapter(tmp_path / "out" / "adapter", "r=1", tmp_path / "small", recipe, console=QUIET)
    tensors = load_file(tmp_path / "small" / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == plan.spent
    assert measured["after"]["loss"] > 0


def test_what_cannot_be_is_refused_with_everything_else_before_anything_is_loaded(
    recipe_on: Any, tmp_path: Path
) -> None:
    with pytest.raises(SeveralFindings) as caught:
        run(
            recipe_on("lora", {"attention": "flash", "quantization": "4bit"}, baselines=["full"], report_to="wandbb"),
            tmp_path / "out", QUIET,
        )  # fmt: skip
    said = [str(error) for error in caught.value.errors]
    assert any("flash" in one and "eager" in one for one in said), said
    assert any("full fine-tuning trains every weight" in one for one in said), said
    assert any("report_to" in one for one in said), said
    with pytest.raises(RecipeError, match=r"model\.revision: is of a model on the hub, .* is a folder; leave it out"):
        prepare(recipe_on("lora", {"revision": "v1"}), ("lora",))
    with pytest.raises(
        RecipeError, match=r"hutchinson of sensitivity-lora takes second derivatives, .* in bf16; give model"
    ):
        prepare(recipe_on("sensitivity-lora", measure={"estimator": "hutchinson"}), ("sensitivity-lora",))
    for key, value in (("dtype", "bfloat16"), ("quantization", "4")):
        with pytest.raises(RecipeError, match=rf"model\.{key}"):
            recipe_on("lora", {key: value})
    assert not (tmp_path / "out").exists()


def test_attention_is_transformers_own(recipe_on: Any) -> None:
    recipe = recipe_on("lora", {"attention": "eager"})
    _, prepared = prepare(recipe, ("lora",))
    assert prepared.load_model().model.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_full_fine_tuning_is_in_fp32_on_a_narrow_checkpoint(recipe_on: Any, tmp_path: Path) -> None:
    result = run(recipe_on("lora", baselines=["full"]), tmp_path / "out", QUIET)
    assert result.results["full"]["trained_parameters"] > result.plan.spent
    checkpoints = list((tmp_path / "out" / "baselines" / "full").rglob("checkpoint-*"))
    assert not checkpoints  # with every weight in them they are not kept


def test_cells_of_another_dtype_are_other_cells(recipe_on: Any) -> None:
    cell = Cell("task", "r=1", "lora", 0)
    sums = {dtype: fingerprint_of(recipe_on("lora", {"dtype": dtype}), cell) for dtype in (None, "bf16", "fp32")}
    assert sums[None] == sums["bf16"] != sums["fp32"]


def test_a_revision_is_what_is_loaded_and_what_the_adapter_records(
    recipe_on: Any, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub model with two commits, in the cache of the hub's client."""
    hub = tmp_path / "hub"
    folder = hub / "models--tiny--llama"
    (folder / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (folder / "refs" / name).write_text(commit)
        shutil.copytree(decoder, folder / "snapshots" / commit)
    weights = folder / "snapshots" / ("b" * 40) / "model.safetensors"
    save_file({key: value * 2 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    main, older = (
        load_task_model(Pretrained("tiny/llama", revision=one), TaskType.CAUSAL_LM, ()) for one in (None, "v1")
    )
    for first, second in zip(main.model.parameters(), older.model.parameters(), strict=True):
        assert torch.equal(first * 2, second)
    recipe = recipe_on("lora", {"name": "tiny/llama", "revision": "v1"})
    run(recipe, tmp_path / "out", QUIET)
    adapter = tmp_path / "out" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["revision"] == "v1"
    assert 'revision="v1"' in (adapter / "README.md").read_text()
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["resolved"]["base"] == {"commit": "b" * 40}
    reloaded = load_adapted(adapter)
    assert torch.equal(next(reloaded.get_base_model().parameters()), next(older.model.parameters()))
    with pytest.raises(RecipeError, match="cannot be loaded"):
        prepare(recipe_on("lora", {"name": "tiny/llama", "revision": "v9"}), ("lora",))
