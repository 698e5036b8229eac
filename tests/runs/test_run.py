"""The whole run on a tiny model: what it leaves behind, that it is exact, and that bad input costs nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from peft import PeftModel
from rich.console import Console
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, DebertaV2Config, MarianConfig, MPNetConfig

from lorank import ImportanceScores, LorankError, RankPlan
from lorank.allocation import allocate
from lorank.allocation.cut_history import CutHistory
from lorank.engine.path import PathScorer
from lorank.errors import LorankWarning, RecipeError
from lorank.recipe.files import load_recipe
from lorank.runs.run import run, run_plan
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.verify import verify
from lorank.tasks import metrics as metrics_module
from lorank.training.checkpoints import latest_checkpoint

QUIET = Console(quiet=True)


def test_a_run_leaves_a_plain_peft_adapter_within_the_budget(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(preset="loss-per-parameter", baselines=["lora"], budget="r=1")
    result = run(recipe, tmp_path / "out", QUIET)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} >= {
        "recipe.yaml",
        "scores.safetensors",
        "plan.json",
        "adapter",
        "metrics.json",
        "ranks.png",
        "cuts.jsonl",
        "cuts.png",
        "baselines",
    }
    cuts = CutHistory.load(out / "cuts.jsonl")
    assert set(cuts.initial_ranks.values()) == {recipe.triplets.initial_rank}
    assert cuts.ranks == result.plan.ranks  # the first stage's last cut is the plan

    plan, config = RankPlan.load(out / "plan.json"), json.loads((out / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    ranks = {
        k.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): v.shape[0]
        for k, v in tensors.items()
        if "lora_A" in k
    }
    assert ranks == {name: rank for name, rank in plan.ranks.items() if rank}
    assert (
        sum(v.size for k, v in tensors.items() if ".lora_" in k)
        == plan.spent
        <= plan.budget_parameters
        == 12 * 32 + 4 * 16
    )
    assert (config["peft_type"], config["use_rslora"], config["r"]) == ("LORA", False, max(ranks.values()))
    assert all(pattern.startswith("^bert") and pattern.endswith("$") for pattern in config["rank_pattern"])
    assert any("classifier" in key for key in tensors)

    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["results"]) == {"i-lora", "lora"}
    for name in ("i-lora", "lora"):
        assert metrics["results"][name]["adapter_parameters"] <= plan.budget_parameters
        assert set(metrics["results"][name]["metrics"]) == {"accuracy", "f1", "matthews"}
    assert metrics["results"]["i-lora"]["search"]["steps"] == 10
    assert set(RankPlan.load(out / "baselines/lora/plan.json").ranks.values()) == {1}
    assert result.plan == plan

    # Scores carry where they come from, and the plan follows from them alone.
    scores = ImportanceScores.load(out / "scores.safetensors")
    assert scores.standard_errors is not None
    assert scores.provenance["scoring_batches"] == 5  # of 10 steps, those after the warm-up
    assert scores.provenance["loss_reduction"] != 0
    assert allocate(scores, "r=1", rank_by="score-per-parameter").ranks == plan.ranks


@pytest.mark.long
@pytest.mark.parametrize("budget", ["r=2", "r=1"])
def test_without_a_second_stage_the_adapter_is_what_stage_1_trained(tiny_recipe, tmp_path: Path, budget: str) -> None:
    recipe = tiny_recipe(budget=budget, start={"factors": "kept"}, baselines=["lora"])
    result = run(recipe, tmp_path / "out", QUIET)
    found = result.results["i-lora"]
    assert (found["steps"], found["adapter_parameters"]) == (10, result.plan.spent)
    assert "search" not in found
    assert not (tmp_path / "out" / "search").exists()
    assert latest_checkpoint(tmp_path / "out" / "train") is not None
    assert run(recipe, tmp_path / "out", QUIET) == result
    # `train` trains a plan that is there too, from fresh factors.
    again = run_plan(recipe, result.plan, tmp_path / "plan", QUIET).results["i-lora"]
    assert (again["steps"], again["adapter_parameters"]) == (10, result.plan.spent)
    with pytest.raises(LorankError, match=r"start\.factors: method lora has no such key"):
        tiny_recipe(method="lora", start={"factors": "kept"})


def test_the_saved_adapter_gives_the_logits_that_were_trained(tiny_recipe, tmp_path: Path, monkeypatch) -> None:
    recipe, seen = tiny_recipe(), {}
    batch = {"input_ids": torch.arange(5, 15).reshape(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    save = PeftModel.save_pretrained

    def watch(self, directory, **options):
        if str(directory).endswith(".adapter.partial"):
            with torch.no_grad():
                seen["logits"] = self.eval()(**batch).logits
        return save(self, directory, **options)

    monkeypatch.setattr(PeftModel, "save_pretrained", watch)
    run(recipe, tmp_path, QUIET)
    base = AutoModelForSequenceClassification.from_pretrained(recipe.model.name, num_labels=2)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, seen["logits"], atol=1e-6)


def test_a_finished_run_is_not_done_again_and_another_recipe_is_refused(tiny_recipe, tmp_path: Path) -> None:
    first = run(tiny_recipe(), tmp_path, QUIET)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "adapter").iterdir()}
    assert run(tiny_recipe(), tmp_path, QUIET).results == first.results
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "adapter").iterdir()}
    with pytest.raises(LorankError, match=r"another recipe: train\.learning_rate was 0\.01, now 0\.02"):
        run(tiny_recipe(train={"learning_rate": 0.02}), tmp_path, QUIET)
    again = load_recipe(tmp_path / "recipe.yaml")
    asked = tiny_recipe()  # what it leaves to the checkpoint is written down
    whole = asked.model_copy(update={"model": asked.model.model_copy(update={"dtype": "fp32"})})
    assert again.model_copy(update={"resolved": None}) == whole
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["resolved"]["versions"]["peft"]


def test_a_foreign_directory_and_changed_data_are_refused(tiny_recipe, tiny_data, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    with pytest.raises(LorankError, match="not empty"):
        run(tiny_recipe(), foreign, QUIET)
    copy = tmp_path / "train.tsv"
    copy.write_text(Path(tiny_data["train"]).read_text())
    run(tiny_recipe(method="lora", data={"train": str(copy)}), tmp_path / "out", QUIET)
    copy.write_text(Path(tiny_data["train"]).read_text().replace("warm", "cold"))
    with pytest.raises(LorankError, match="data changed"):
        run(tiny_recipe(method="lora", data={"train": str(copy)}), tmp_path / "out", QUIET)
    renamed = {}
    for part in ("train", "test"):  # other names, in the same order
        renamed[part] = str(tmp_path / f"renamed {part}.tsv")
        Path(renamed[part]).write_text(Path(tiny_data[part]).read_text())
    run(tiny_recipe(method="lora", data=renamed), tmp_path / "names", QUIET)
    for path in renamed.values():
        Path(path).write_text(Path(path).read_text().replace("\tgood\n", "\tglad\n"))
    with pytest.raises(LorankError, match="data changed since this run began: labels was"):
        run(tiny_recipe(method="lora", data=renamed), tmp_path / "names", QUIET)
    (tmp_path / "out" / "recipe.yaml").write_text("resolved")
    with pytest.raises(LorankError, match="not written by lorank"):
        run(tiny_recipe(), tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "1"}, "below one unit of rank"),
        ({"budget": "1B"}, "above the base model"),
        ({"budget": "r=3"}, r"raise triplets\.initial_rank"),
        ({"ranks": {"max_rank": 1}, "budget": "r=2"}, "max_rank"),
        ({"ranks": {"min_rank": 2}, "budget": "r=1"}, "min_rank 2 alone costs"),
        ({"target_modules": ["qeury"]}, "query"),
        ({"target_modules": "nothing.*"}, "matches the full name of no linear layer"),
        ({"metrics": ["bleu"]}, "allowed: accuracy"),
        ({"model": "/no/such/model"}, "cannot be loaded"),
        ({"data": {"train": "/no/such/file.tsv"}}, "no such file"),
        ({"measure": {"fraction": 0.01}}, "less than one batch"),
        ({"measure": {"every": 50}}, "leave none to score at"),
        ({"data": {"max_length": 64}}, "has 32 positions"),
        ({"target_modules": ["query", "classifier"]}, "part of the head"),
        ({"report_to": "wandbb"}, "allowed: none"),
        ({"measure": {"fraction": 0.97}}, "leaves"),
    ],
)
def test_bad_input_stops_before_anything_is_loaded_or_written(
    tiny_recipe, tmp_path, monkeypatch, changes, message
) -> None:
    def never(*_, **__):
        raise AssertionError("too late")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", never)
    with pytest.raises(LorankError, match=message):
        run(tiny_recipe(**changes), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_an_architecture_without_a_classifier_is_refused_at_once(tiny_recipe, tiny_folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    MarianConfig(vocab_size=32, pad_token_id=0).save_pretrained(folder)
    with pytest.raises(LorankError, match="'marian' has no classifier class"):
        run(tiny_recipe(model=str(folder)), tmp_path / "out", QUIET)


def test_a_directory_in_use_and_a_file_in_its_place_are_refused(tiny_recipe, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(LorankError, match="in use by another lorank process"):
        run(tiny_recipe(), tmp_path / "out", QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(LorankError, match="is a file"):
        run(tiny_recipe(), tmp_path / "file", QUIET)


def test_a_checkpoint_with_a_head_for_other_labels_gets_a_new_one(tiny_recipe, tiny_folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=5).save_pretrained(folder)
    run(tiny_recipe(model=str(folder)), tmp_path / "out", QUIET)
    assert (
        load_file(tmp_path / "out/adapter/adapter_model.safetensors")["base_model.model.classifier.weight"].shape[0]
        == 2
    )
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(LorankError, match="cannot be loaded"):
        run(tiny_recipe(model=str(folder)), tmp_path / "again", QUIET)


def test_a_loss_that_is_not_finite_is_named_before_scores_are_cut(tiny_recipe, tmp_path: Path) -> None:
    rule = {"share": 0.01, "window": 2, "windows": 1}
    with pytest.raises(LorankError, match="search, i-lora: the loss is not finite at step"):
        run(tiny_recipe(search={"learning_rate": 1e30}, cut={"stop_when_stable": rule}), tmp_path, QUIET)


@pytest.mark.long
def test_a_metric_that_is_not_defined_is_recorded_as_null(tiny_recipe, tiny_data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(metrics_module.CLASSIFICATION, "accuracy", lambda labels, predicted: float("nan"))
    with pytest.warns(LorankWarning, match="accuracy is not defined"):
        result = run(tiny_recipe(), tmp_path, QUIET)
    assert result.results["i-lora"]["metrics"]["accuracy"] is None
    assert "accuracy" in json.loads((tmp_path / "metrics.json").read_text())["results"]["i-lora"]["metrics"]


def test_the_plan_states_the_scale_that_is_trained(tiny_recipe, tmp_path: Path) -> None:
    result = run(tiny_recipe(start={"scale_by": "target"}, budget="r=1.5"), tmp_path, QUIET)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == pytest.approx(result.plan.scale)
    # alpha is 2 * 2; the mean rank of the plan takes the place of the initial rank.
    assert result.plan.scale == pytest.approx(4 * len(result.plan.ranks) / result.plan.total_rank)


def test_a_damaged_scores_file_is_refused_not_overwritten(tiny_recipe, tmp_path: Path) -> None:
    run(tiny_recipe(), tmp_path, QUIET)
    (tmp_path / "plan.json").unlink()
    damaged = (tmp_path / "scores.safetensors").read_bytes()[:-9]
    (tmp_path / "scores.safetensors").write_bytes(damaged)
    with pytest.raises(LorankError, match="damaged"):
        run(tiny_recipe(), tmp_path, QUIET)
    assert (tmp_path / "scores.safetensors").read_bytes() == damaged


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "measure": {"draw": "sweep", "intervals": 3, "moved": "all", "scoring_batch_size": 4},
                "expert": {"measure": {"when": "after", "baseline": "initial"}},
            },
            marks=pytest.mark.long,
        ),
        pytest.param(
            {
                "measure": {"parameter_factor": "absolute"},
                "expert": {"measure": {"granularity": "module"}, "smooth": {"accumulate": "ema"}},
            },
            marks=pytest.mark.long,
        ),
        pytest.param(
            {
                "measure": {"path_scope": "module"},
                "expert": {"measure": {"source": "training", "dropout": True}},
                "triplets": {"train_on_path": True},
            },
            marks=pytest.mark.long,
        ),
        pytest.param(
            {
                "search": {"max_steps": 25},
                "cut": {"curve": "cubic"},
                "ranks": {"scope": "layer"},
                "start": {"scale_by": "target"},
            },
            marks=pytest.mark.long,
        ),
        {
            "start": {"scale_by": "active"},
            "budget": "beta=0.5",
            "measure": {"every": 2},
            "expert": {"measure": {"vector_reduction": "sum"}},
        },
        pytest.param(
            {"data": {"label": "label"}, "ranks": {"multiple_of": 2}, "group_by_length": False}, marks=pytest.mark.long
        ),
    ],
    ids=["sweep-after", "integrated-gradients", "training-set", "cubic", "beta", "multiple-of-2"],
)
def test_every_reading_runs(tiny_recipe, tmp_path: Path, changes) -> None:
    result = run(tiny_recipe(**changes), tmp_path, QUIET)
    assert 0 < result.plan.spent <= result.plan.budget_parameters
    if changes.get("start", {}).get("scale_by") == "active":
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["lora_alpha"] == 4  # scale 2 at the initial rank 2, whatever the rank that is left
        assert set(config["alpha_pattern"].values()) == {4} == {result.plan.alpha}


@pytest.mark.long
def test_rslora_scales_by_the_root_of_each_modules_rank_and_needs_a_fresh_adapter(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(start={"scale_by": "rslora"}, baselines=["lora"])
    result = run(recipe, tmp_path, QUIET)
    for folder, plan in ((tmp_path, result.plan), (tmp_path / "baselines/lora", None)):
        plan = plan or RankPlan.load(folder / "plan.json")
        files = AdapterFiles.read(folder / "adapter")
        assert plan.alpha == 4  # scale 2 at the initial rank 2
        assert files.peft_scales() == pytest.approx({m: 4 / plan.ranks[m] ** 0.5 for m in files.pairs})
        assert len({rank for rank in plan.ranks.values() if rank}) > 1 or plan is not result.plan
        assert not files.config["use_rslora"]
        assert [one.answer for one in verify(folder / "adapter", engines=["peft", "vllm"]).verdicts] == ["right"] * 2
    with pytest.raises(RecipeError, match=r"start\.scale_by rslora: igu-lora keeps the triplets"):
        tiny_recipe(method="igu-lora", start={"scale_by": "rslora"})
    with pytest.raises(RecipeError, match=r"baselines\.adalora\.start\.scale_by rslora: adalora keeps"):
        tiny_recipe(start={"scale_by": "rslora"}, baselines=["adalora"])
    tiny_recipe(method="igu-lora", start={"scale_by": "rslora", "factors": "fresh"})


@pytest.mark.parametrize("scale_by", ["target", "active"])
def test_kept_triplets_keep_their_scale(tiny_recipe, scale_by: str) -> None:
    with pytest.raises(RecipeError, match=rf"start\.scale_by {scale_by}: igu-lora keeps the triplets"):
        tiny_recipe(method="igu-lora", start={"scale_by": scale_by})
    with pytest.raises(RecipeError, match=rf"baselines\.adalora\.start\.scale_by {scale_by}: adalora keeps"):
        tiny_recipe(start={"scale_by": scale_by}, baselines=["adalora"])


@pytest.mark.long
def test_baselines_get_what_the_units_cost_that_the_plan_keeps(tiny_recipe, tmp_path: Path) -> None:
    baselines = {"lora": {}, "adalora": {"budget": "r=2"}}
    result = run(tiny_recipe(budget="keep=50%", baselines=baselines), tmp_path, QUIET)
    plan, budget = result.plan, json.loads((tmp_path / "metrics.json").read_text())["budget"]
    units = 2 * len(plan.ranks)
    assert plan.total_rank == units // 2
    assert budget == {
        **{"asked": "keep=50%", "parameters": plan.spent, "spent": plan.spent},
        **{"units": units // 2, "units_kept": units // 2},
    }
    lora, adalora = (RankPlan.load(tmp_path / "baselines" / name / "plan.json") for name in baselines)
    assert plan.spent - max(plan.unit_costs.values()) < lora.spent <= lora.budget_parameters == plan.spent
    assert (adalora.budget, adalora.budget_units) == ("r=2", units)  # its own, as the paper's table has it
    assert [one.get("budget") for one in result.results.values()] == [None, None, "r=2"]
    assert "its own budget, r=2" in (tmp_path / "adapter" / "README.md").read_text()


def test_regression_runs(tiny_recipe, tiny_data, tmp_path: Path) -> None:
    paths = {}
    for part, path in tiny_data.items():
        text = Path(path).read_text().replace("\tgood", "\t1.5").replace("\tbad", "\t-0.5")
        (tmp_path / f"{part}.tsv").write_text(text)
        paths[part] = str(tmp_path / f"{part}.tsv")
    result = run(tiny_recipe(data={**paths, "task": "regression"}), tmp_path / "out", QUIET)
    assert set(result.results["i-lora"]["metrics"]) == {"pearson", "spearman"}


def test_stage_1_ends_early_when_the_cut_is_stable_and_says_by_which_rule(tiny_recipe, tmp_path: Path) -> None:
    rule = {"share": 1.0, "window": 2, "windows": 1}
    run(tiny_recipe(cut={"stop_when_stable": rule}, search={"max_steps": 30}), tmp_path, QUIET)
    found = ImportanceScores.load(tmp_path / "scores.safetensors").provenance
    assert found["last_cut"] == 7  # warm-up 3, then two windows of 2
    assert found["ended"] == "stable at step 7 of 30"
    assert "less than 100.0%" in found["stop_rule"]
    assert json.loads((tmp_path / "metrics.json").read_text())["results"]["i-lora"]["search"]["steps"] == 7


def test_scores_that_are_not_finite_stop_stage_1_before_they_are_saved(
    tiny_recipe, tmp_path: Path, monkeypatch
) -> None:
    real = PathScorer.batch_scores
    monkeypatch.setattr(
        PathScorer,
        "batch_scores",
        lambda self, batch, draw, *share: real(self, batch, draw, *share) * (1 if draw < 5 else float("inf")),
    )
    with pytest.raises(LorankError, match="scores are not finite at step 8"):
        run(tiny_recipe(), tmp_path, QUIET)
    assert (tmp_path / "search" / "checkpoint-4").exists()


@pytest.mark.long
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_recipe, tmp_path: Path) -> None:
    found = []
    for k, seed in enumerate((0, 0, 1)):
        run(tiny_recipe(seed=seed), tmp_path / str(k), QUIET)
        found.append(load_file(tmp_path / str(k) / "adapter" / "adapter_model.safetensors"))
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])
    assert any(not np.array_equal(found[0][key], found[2].get(key, 0)) for key in found[0])


SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        pytest.param(MPNetConfig(**SIZES), {"classifier"}, marks=pytest.mark.long),
        pytest.param(
            DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
            {"classifier", "pooler"},
            marks=pytest.mark.long,
        ),
    ],
    ids=["mpnet", "deberta"],
)
def test_other_encoders_run_and_reload_with_their_heads(
    tiny_recipe, tiny_folder, tmp_path: Path, config, heads
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    AutoModel.from_config(config).save_pretrained(folder)
    run(tiny_recipe(model=str(folder)), tmp_path / "out", QUIET)
    keys = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert {key.removeprefix("base_model.model.").split(".")[0] for key in keys if ".lora_" not in key} == heads
    # Two loads, two random heads underneath: what the adapter brings must cover all of what is random.
    logits = []
    for _ in range(2):
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        model = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
        with torch.no_grad():
            logits.append(model(input_ids=torch.arange(5, 15).reshape(2, 5)).logits)
    assert torch.equal(*logits)


def test_a_recipe_is_refused_under_deepspeed_before_anything_is_read(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch --use_deepspeed` starts it; whatever the method."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for method in ("lora", "sensitivity-lora"):
        with pytest.raises(RecipeError, match=r"does not train under DeepSpeed: .*docs/several-devices.md"):
            run(tiny_recipe(method=method), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
