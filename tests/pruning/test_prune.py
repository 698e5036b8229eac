import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tests.conftest import BAD, GOOD, random_batch, tiny_config, tiny_writer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    set_seed,
)

import lorank
from lorank.errors import AdapterError, BudgetError, DataError, OutputError
from lorank.models.label_names import read_label_names
from lorank.pruning.prune import mean_loss, pruned_copies
from lorank.runs.data_file import DataFile
from lorank.runs.prune_adapter import prune_adapter, prune_to_budgets
from lorank.runs.run import run

BATCHES = [random_batch(size=8, seed=seed) for seed in range(3)]


def trained(rank: int = 4, dtype: torch.dtype = torch.float64, **options: Any) -> PeftModel:
    """A LoRA that a few steps of gradient descent have moved away from doing nothing."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    usual = {"r": rank, "lora_alpha": 2 * rank, "target_modules": ["query", "dense"], "task_type": TaskType.SEQ_CLS}
    model = get_peft_model(base, LoraConfig(**{**usual, "exclude_modules": r".*pooler.*", **options})).to(dtype).eval()
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "lora_" in n], lr=3e-2)
    for step in range(12):
        optimizer.zero_grad()
        model(**BATCHES[step % 3]).loss.backward()
        optimizer.step()
    return model


def delta_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        name: module.get_delta_weight("default").detach().clone()
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


def test_svd_keeps_the_best_approximation_of_every_module() -> None:
    model = trained()
    before = delta_weights(model)
    pruned = lorank.prune(model, "r=2")
    after = delta_weights(model)
    assert pruned.plan.spent <= pruned.plan.budget_parameters
    assert pruned.loss_before is None
    for name, matrix in before.items():
        rank = pruned.plan.ranks[name]
        u, sigma, v = torch.linalg.svd(matrix)
        best = (u[:, :rank] * sigma[:rank]) @ v[:rank]
        torch.testing.assert_close(after.get(name, torch.zeros_like(matrix)), best)
    kept = {name: torch.linalg.svdvals(matrix)[: pruned.plan.ranks[name]] for name, matrix in before.items()}
    dropped = {name: torch.linalg.svdvals(matrix)[pruned.plan.ranks[name] : 4] for name, matrix in before.items()}
    costs = pruned.plan.unit_costs
    for one in before:
        for other in before:
            if costs[one] == costs[other] and len(kept[one]) and len(dropped[other]):
                assert kept[one].min() >= dropped[other].max()


def test_energy_that_is_kept_is_that_of_the_updates() -> None:
    model = trained(alpha_pattern={"query": 80.0})
    before = delta_weights(model)
    pruned = lorank.prune(model, "half", by="svd")
    held = sum(4 * cost for cost in pruned.plan.unit_costs.values())
    assert held // 2 - max(pruned.plan.unit_costs.values()) < pruned.plan.spent <= held // 2
    after = {name: delta_weights(model).get(name, torch.zeros_like(matrix)) for name, matrix in before.items()}
    energy = {
        name: (float(matrix.square().sum()), float(after[name].square().sum())) for name, matrix in before.items()
    }
    assert pruned.energy.modules == pytest.approx({name: kept / whole for name, (whole, kept) in energy.items()})
    assert pruned.energy.whole == pytest.approx(
        sum(kept for _, kept in energy.values()) / sum(w for w, _ in energy.values())
    )
    assert pruned.energy.lowest(1)[0][1] == min(pruned.energy.modules.values())


def test_copies_are_what_pruning_in_place_gives_and_the_model_stays() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budgets = ("r=2", "half", "keep=0.25")
    for budget, (small, pruned) in zip(budgets, pruned_copies(model, budgets, BATCHES), strict=True):
        alone = trained()
        expected = lorank.prune(alone, {"keep=0.25": "keep=25%"}.get(budget, budget), BATCHES)
        assert pruned.plan == expected.plan
        assert pruned.energy == expected.energy
        assert (pruned.loss_before, pruned.loss_after) == (expected.loss_before, expected.loss_after)
        by_svd = lorank.prune(trained(), expected.plan.budget, BATCHES, by="svd")
        assert pruned.loss_by_svd == expected.loss_by_svd == pytest.approx(by_svd.loss_after)
        assert by_svd.loss_by_svd is None
        torch.testing.assert_close(delta_weights(small), delta_weights(alone), rtol=0, atol=0)
        weights = (one.get_input_embeddings().weight for one in (small, model))
        assert next(weights).data_ptr() == next(weights).data_ptr()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_path_scores_add_up_to_what_the_adapter_takes_off_the_loss() -> None:
    model = trained()
    with model.disable_adapter():
        without = mean_loss(model, BATCHES)
    pruned = lorank.prune(model, "r=2", BATCHES, intervals=40)
    assert without is not None
    assert pruned.loss_before is not None
    total = sum(float(values.sum()) for values in pruned.scores.scores.values())
    assert total == pytest.approx(without - pruned.loss_before, rel=1e-2)
    assert pruned.loss_after == pytest.approx(mean_loss(model, BATCHES))


def test_what_is_left_is_a_plain_compact_lora(tmp_path: Path) -> None:
    model = trained(dtype=torch.float32)
    pruned = lorank.prune(model, "r=1", BATCHES)
    logits = model(**BATCHES[0]).logits
    model.save_pretrained(str(tmp_path))
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    base.load_state_dict({k.replace(".base_layer", ""): v for k, v in _base_state(model).items()}, strict=False)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**BATCHES[0]).logits, logits, atol=1e-6, rtol=1e-5)
    held = sum(p.numel() for name, p in loaded.named_parameters() if ".lora_" in name)
    assert held == pruned.plan.spent
    assert not any("lora_lambda" in name for name, _ in model.named_parameters())


def _base_state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.get_base_model().state_dict().items() if ".lora_" not in k}


def test_modules_of_different_scale_are_weighed_by_what_they_do() -> None:
    model = trained(alpha_pattern={"query": 80.0})
    before = delta_weights(model)
    pruned = lorank.prune(model, "r=2", by="svd")
    for name, values in pruned.scores.scores.items():
        torch.testing.assert_close(torch.from_numpy(values), torch.linalg.svdvals(before[name])[:4].square())


def test_a_model_loaded_for_inference_is_pruned_too(tmp_path: Path) -> None:
    trained(dtype=torch.float32).save_pretrained(str(tmp_path))
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert lorank.prune(model, "r=2", BATCHES).plan.total_rank > 0
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": "r=4"}, BudgetError, "nothing is to prune"),
        ({"budget": 3}, BudgetError, "below one unit of rank"),
        ({"budget": "keep=2"}, BudgetError, r"says no percentage.*for pruning also half"),
        ({"budget": "r=2", "by": "path"}, DataError, "looks at the loss"),
        ({"budget": "r=2", "by": "path", "dataloader": []}, DataError, "gave no batch"),
        ({"budget": "r=2", "by": "size"}, AdapterError, "by is 'size'; allowed: 'path', 'svd'"),
        ({"budget": "r=2", "min_rank": 5}, lorank.LorankError, "only 4 scored units"),
    ],
)
def test_bad_input_leaves_the_adapter_as_it_was(arguments: dict, error: type[Exception], message: str) -> None:
    model = trained()
    before = delta_weights(model)
    with pytest.raises(error, match=message):
        lorank.prune(model, **arguments)
    torch.testing.assert_close(delta_weights(model), before)
    assert model.peft_config["default"].init_lora_weights is True


def test_a_failure_on_the_way_leaves_a_plain_lora_of_the_same_function() -> None:
    model = trained()
    before, calls = delta_weights(model), []

    def loss(model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > len(BATCHES):  # the path, after the losses before
            raise RuntimeError("out of memory")
        return model(**batch).loss * 8, torch.ones(8)

    with pytest.raises(RuntimeError, match="out of memory"):
        lorank.prune(model, "r=2", BATCHES, loss=loss)
    torch.testing.assert_close(delta_weights(model), before)
    assert not any("lora_lambda" in name for name, _ in model.named_parameters())


def test_the_split_into_batches_changes_no_share() -> None:
    whole = [{key: torch.cat([batch[key] for batch in BATCHES]) for key in BATCHES[0]}]
    ragged = [
        {key: value[part] for key, value in whole[0].items()} for part in (slice(0, 5), slice(5, 6), slice(6, None))
    ]
    one, other = (lorank.prune(trained(), "r=2", batches).scores for batches in (whole, ragged))
    for name, values in one.scores.items():
        torch.testing.assert_close(torch.from_numpy(values), torch.from_numpy(other.scores[name]), rtol=1e-4, atol=1e-7)


def test_no_label_that_counts_is_refused() -> None:
    masked = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in BATCHES]
    with pytest.raises(DataError, match="not one label of the batches counts"):
        lorank.prune(trained(), "r=2", masked)


def test_models_that_cannot_be_pruned() -> None:
    with pytest.raises(AdapterError, match="no single active adapter"):
        lorank.prune(trained().get_base_model(), "r=1")  # type: ignore[arg-type]
    set_seed(0)
    fresh = get_peft_model(BertForSequenceClassification(tiny_config()), LoraConfig(target_modules=["query"]))
    with pytest.raises(AdapterError, match="is not trained yet"):
        lorank.prune(fresh, "r=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that the first test does and the others find done."""
    return tmp_path_factory.mktemp("runs") / "done"


class TestFolders:
    @pytest.mark.parametrize("by", ["path", "svd", None])
    def test_both_adapters_are_measured(self, by: str | None, finished: Path, tiny_recipe: Any, tmp_path: Path) -> None:
        recipe = tiny_recipe(method="lora", budget="r=2")
        run(recipe, finished)
        plan, measured = prune_adapter(finished / "adapter", "r=1", tmp_path / "small", recipe, by=by)
        assert measured["after"]["adapter_parameters"] == plan.spent < measured["before"]["adapter_parameters"]
        assert 0 < measured.pop("energy_kept")["whole"] < 1
        assert (measured["after"].pop("calibration_loss_by_svd", None) is None) is (by == "svd")
        for part in measured.values():
            assert set(part) == {"adapter_parameters", "calibration_loss", "metrics", "loss"}
        files = {path.name for path in (tmp_path / "small").iterdir()}
        assert files == {"adapter", "plan.json", "scores.safetensors", "ranks.png", "pruned.json", "losses.npy"}
        assert read_label_names(tmp_path / "small" / "adapter") == ("bad", "good")
        card = (tmp_path / "small" / "adapter" / "README.md").read_text()
        before = f"{measured['before']['adapter_parameters']:,}"
        for expected in (
            "# small",
            "- pruning",
            f"an adapter of {before} parameters",
            "the budget `r=1`: by ",
            "| accuracy, test part |",
        ):
            assert expected in card

    def test_a_classifier_of_more_labels_than_its_base_is_loaded(self, tiny_folder: Path, tmp_path: Path) -> None:
        base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=5)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["query"], task_type=TaskType.SEQ_CLS))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        model.save_pretrained(str(tmp_path / "adapter"))
        plan, _ = prune_adapter(tmp_path / "adapter", "r=1", tmp_path / "small", None)
        assert plan.total_rank == 2

    def test_without_a_recipe_it_is_by_svd(self, finished: Path, tiny_recipe: Any, tmp_path: Path) -> None:
        run(tiny_recipe(method="lora", budget="r=2"), finished)
        plan, measured = prune_adapter(finished / "adapter", "r=1", tmp_path / "small", None)
        assert plan.provenance["method"] == "prune by svd"
        assert measured["after"] == {"adapter_parameters": plan.spent, "calibration_loss": None}

    @pytest.mark.parametrize("ending", [".tsv", ".jsonl"])
    def test_several_budgets_on_a_file_of_one_class_column(
        self, ending: str, finished: Path, tiny_recipe: Any, tiny_data: dict[str, str], tmp_path: Path
    ) -> None:
        run(tiny_recipe(method="lora", budget="r=2"), finished)
        rows = [line.split("\t") for line in Path(tiny_data["test"]).read_text().splitlines()[1:]]
        data = tmp_path / f"rows{ending}"
        if ending == ".tsv":  # numbers of classes, in other columns
            lines = [f"{text}\t{int(label == 'good')}" for text, label in rows]
            data.write_text("\n".join(["said\tmood", *lines]))
        else:
            data.write_text("\n".join(json.dumps({"said": text, "mood": label}) for text, label in rows))
        file = DataFile(data, ("said",), "mood")
        before, after = prune_to_budgets(finished / "adapter", ("r=1", "half", "keep=0.25"), tmp_path / "small", file)
        assert list(after) == ["r=1", "half", "keep=0.25"]
        assert {path.name for path in (tmp_path / "small").iterdir()} == {
            *("r-1", "half", "keep-0.25"),
            *("scores.safetensors", "pruned.json", "curve.png"),
        }
        assert before["metrics"]["accuracy"] is not None
        assert 0.2 < after["half"]["adapter_parameters"] / before["adapter_parameters"] <= 0.5
        assert after["keep=0.25"]["energy_kept"]["whole"] < after["half"]["energy_kept"]["whole"] < 1
        base = AutoModelForSequenceClassification.from_pretrained(tiny_recipe().model.name, num_labels=2)
        PeftModel.from_pretrained(base, str(tmp_path / "small" / "half" / "adapter"))
        assert read_label_names(tmp_path / "small" / "half" / "adapter") == ("bad", "good")

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["day\t0", "house\t7"], "has the class number 7, and the adapter's head has 2 outputs"),
            (["day\tgood", "house\tso so"], "'so so', which the adapter was not trained for; it knows 'bad', 'good'"),
            (["day\tgood", "day\tbad"], "has a single text"),
        ],
    )
    def test_files_that_do_not_fit_the_adapter(
        self, rows: list[str], message: str, finished: Path, tiny_recipe: Any, tmp_path: Path
    ) -> None:
        run(tiny_recipe(method="lora", budget="r=2"), finished)
        (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]))
        with pytest.raises(DataError, match=message):
            prune_adapter(finished / "adapter", "r=1", tmp_path / "small", DataFile(tmp_path / "rows.tsv"))

    def test_a_decoder_is_measured_by_its_loss_on_a_file(self, tiny_folder: Path, tmp_path: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(tiny_writer("decoder", tiny_folder, tmp_path / "decoder"))
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        model.save_pretrained(str(tmp_path / "adapter"))
        lines = [f"the day was {word}\tlooked {word}" for word in (*GOOD, *BAD)]
        (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *lines]))
        file = DataFile(tmp_path / "rows.tsv")
        plan, measured = prune_adapter(tmp_path / "adapter", "half", tmp_path / "small", file)
        assert plan.total_rank == 2
        assert measured["before"]["metrics"] == measured["after"]["metrics"] == {}
        assert measured["after"]["loss"] != measured["before"]["loss"] > 0

    def test_folders_that_are_refused(self, finished: Path, tiny_recipe: Any, tmp_path: Path) -> None:
        with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
            prune_adapter(tmp_path, "r=1", tmp_path / "small", None)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine").touch()
        with pytest.raises(OutputError, match="is there already"):
            prune_adapter(tmp_path, "r=1", tmp_path / "full", None)
