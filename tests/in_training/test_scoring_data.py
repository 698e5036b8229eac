"""The scoring set that a user gives I-LoRA: its forms, what is said about it, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from tests.conftest import tiny_trainer
from tests.in_training.i_lora_cases import STAGE, examples, i_lora
from tests.in_training.pruning_cases import Stop
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from lorank import RankAllocation
from lorank.errors import DataError, LorankWarning, RecipeError, TrainingError


def test_a_loader_gives_the_scores_of_its_batches_and_leaves_training_alone(tmp_path: Path) -> None:
    """Shuffled, and with a collator that draws: the same scores after a resume, and the same training as without."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
        return {**batch, "attention_mask": (torch.rand(batch["input_ids"].shape) < 0.9).long()}

    def trained(folder: Path, resume: bool = False, **options: Any) -> tuple[RankAllocation, list[float]]:
        loader = DataLoader(examples(), batch_size=8, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
        allocation = i_lora(loader, **options)
        trainer = tiny_trainer(folder, allocation, **STAGE)
        trainer.train(resume_from_checkpoint=resume or None)
        return allocation, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    whole, losses = trained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "again" / "checkpoint-6")
    again, _ = trained(tmp_path / "again", resume=True)
    assert again.scores.fingerprint == whole.scores.fingerprint
    _, rarely = trained(tmp_path / "rarely", every=4)
    assert rarely == losses


def test_rows_in_any_form_score_alike(tmp_path: Path) -> None:
    found = []
    data: dict[str, Any] = {
        "rows": examples(24),
        "list": list(examples(24)),
        "loader": DataLoader(examples(24).with_format("torch"), batch_size=8),  # type: ignore[arg-type]
    }
    for name, given in data.items():
        # Signed shares of equal batches are the mean over examples, in whatever order these come.
        allocation = i_lora(given, when="after", draw="sweep", intervals=2, parameter_factor="signed")
        tiny_trainer(tmp_path / name, allocation, **STAGE).train()
        found.append(allocation.scores)
    for scores in found[1:]:
        for name, values in scores.scores.items():
            assert values == pytest.approx(found[0].scores[name], rel=1e-3, abs=1e-9)


def test_the_name_of_an_eval_dataset_entry(tmp_path: Path) -> None:
    allocation = i_lora("scoring")
    trainer = tiny_trainer(tmp_path, **STAGE)
    trainer.eval_dataset = {"scoring": examples(), "other": examples(16, seed=9)}
    allocation.attach(trainer)
    trainer.train()
    assert allocation.scores.provenance["scoring_examples"] == 32
    alone = tiny_trainer(tmp_path / "alone", i_lora("scoring"), **STAGE)
    with pytest.raises(TrainingError, match=r"call allocation\.attach\(trainer\)"):
        alone.train()
    other = tiny_trainer(tmp_path / "other", **STAGE)
    other.eval_dataset = {"scoring": examples()}
    with pytest.raises(TrainingError, match=r"no entry 'scorring' \(did you mean scoring\?\)"):
        i_lora("scorring").attach(other)


def test_an_overlap_with_the_training_set_is_said(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STAGE)
    rows = Dataset.from_list([*examples(29).to_list(), *trainer.train_dataset.select(range(3)).to_list()])
    i_lora(rows).attach(trainer)
    with pytest.warns(LorankWarning, match=r"^3 of 32 scoring examples are in the training data too"):
        trainer.train()


def test_a_scoring_set_that_is_too_small_is_said_with_the_standard_error(tmp_path: Path) -> None:
    allocation = i_lora(examples(2), preset="loss-per-parameter", scoring_batch_size=1, warmup=0.1, every=2)
    trainer = tiny_trainer(tmp_path, allocation, **STAGE)
    with pytest.warns(
        LorankWarning, match=r"small for this plan: after 4 scoring batches from a set of 2 examples the standard error"
    ):
        trainer.train()
    assert allocation.plan.provenance["moved_by_standard_errors"] > 0.1


def test_a_scoring_set_of_one_batch_is_said_before_training(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, i_lora(examples(8), scoring_batch_size=8), **STAGE)
    trainer.training_step = None  # type: ignore[assignment]  # nothing is trained
    said = "the scoring set is a single batch of 8 examples, so it is not known how far"
    with pytest.warns(LorankWarning, match=said), pytest.raises(TypeError):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"scoring_data": None}, RecipeError, "give scoring_data="),
        ({"source": "training", "scoring_data": [1]}, RecipeError, "leave scoring_data out"),
        ({"method": "igu-lora"}, RecipeError, "scoring_data is for methods with a scoring set"),
        ({"estimator": "trapezoid"}, RecipeError, "estimator: unknown option"),
        ({"preset": "official"}, RecipeError, "preset 'official' of i-lora is unknown"),
        ({"when": "after", "curve": "cubic"}, RecipeError, "leaves no scores"),
        ({"warmup": 1.0}, RecipeError, "warmup"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], error: type[Exception], said: str) -> None:
    given: dict[str, Any] = {"method": "i-lora", "budget": "r=2", "scoring_data": examples(), **options}
    with pytest.raises(error, match=said):
        RankAllocation(**given)


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        (DataLoader([{"text": "raw"}] * 8, batch_size=4), {}, DataError, "first scoring batch cannot be computed"),
        (
            DataLoader(examples(8).remove_columns("labels").with_format("torch"), batch_size=4),  # type: ignore[arg-type]
            {},
            DataError,
            "returns no loss",
        ),
        (examples(4), {"scoring_batch_size": 8}, DataError, "4 examples, less than one batch of 8"),
        (examples().remove_columns("labels"), {}, DataError, "labels is missing"),
        (Dataset.from_dict({"text": ["one", "two"]}), {}, DataError, "eval_dataset={'scoring': rows}"),
        (iter(examples()), {}, DataError, "passed through only once"),
        (examples(), {"every": 9}, Exception, "leave none to score at"),
        ([], {}, DataError, "no examples"),
    ],
)
def test_bad_scoring_data_is_refused_before_a_step(
    data: Any, options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path, i_lora(data, **options), **STAGE)
    with pytest.raises(error, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_stage_is_not_resumed_with_other_scoring_rows(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, i_lora(), Stop(4, error=True), **STAGE).train()
    again = tiny_trainer(tmp_path, i_lora(examples(24, seed=8)), **STAGE)
    with pytest.raises(TrainingError, match="scoring_data has other rows"):
        again.train(resume_from_checkpoint=True)


def test_persistent_workers_of_an_evaluation_do_not_set_scoring_back(tmp_path: Path) -> None:
    found = []
    for evaluated in (False, True):
        loader = DataLoader(
            examples().with_format("torch"),  # type: ignore[arg-type]
            batch_size=8,
            num_workers=1,
            persistent_workers=True,
        )

        class Evaluation(TrainerCallback):
            def on_step_end(self, *_: Any, loader: Any = loader, **__: Any) -> None:
                with torch.random.fork_rng():
                    next(iter(loader))

        allocation = i_lora(loader)
        more = {**STAGE, "max_steps": 4}
        tiny_trainer(tmp_path / str(evaluated), allocation, *([Evaluation()] if evaluated else []), **more).train()
        found.append(allocation.scores.fingerprint)
    assert found[0] == found[1]


def test_the_held_out_loss_is_that_of_the_trainers_evaluation(tmp_path: Path) -> None:
    """A loss that divides by the items of a step is told those of the scoring batch, as evaluation is."""
    scores = []
    for own in (False, True):
        trainer = tiny_trainer(tmp_path / str(own), **STAGE)
        if own:
            trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch: (
                cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
            )
        allocation = i_lora(preset="loss-per-parameter").attach(trainer)
        trainer.train()
        scores.append(allocation.scores)
    assert scores[0].provenance["loss_reduction"] == pytest.approx(scores[1].provenance["loss_reduction"], rel=1e-3)


def test_a_training_set_that_is_made_on_use_and_a_stream(tmp_path: Path) -> None:
    rows = examples(96, seed=0)
    raw = Dataset.from_dict({"raw": rows["input_ids"], "label": rows["labels"]})
    made = raw.with_transform(lambda batch: {"input_ids": batch["raw"], "labels": batch["label"]})
    trainer = tiny_trainer(tmp_path / "made", **STAGE, remove_unused_columns=False)
    trainer.train_dataset = made
    allocation = i_lora(made.select(range(16))).attach(trainer)
    trainer.train()
    assert allocation.plan.total_rank
    trainer = tiny_trainer(tmp_path / "stream", **STAGE)
    trainer.train_dataset = rows.to_iterable_dataset()
    allocation = i_lora(preset="loss-per-parameter").attach(trainer)
    trainer.train()
    assert allocation.plan.total_rank


@pytest.mark.parametrize("data", [{"input_ids": [[5, 6]], "labels": [1]}, DatasetDict(train=examples(4))], ids=str)
def test_a_mapping_is_not_rows(data: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give rows"):
        tiny_trainer(tmp_path, i_lora(data), **STAGE).train()
