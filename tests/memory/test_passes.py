"""Passes and score state, against what a real run makes and holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.conftest import tiny_trainer

from lorank import RankAllocation
from lorank.engine.smoother import Smoother
from lorank.errors import AllocationError
from lorank.memory.adapter_bytes import Trained
from lorank.memory.passes import extra_passes
from lorank.memory.question import read_question
from lorank.memory.score_state import score_state
from lorank.targets import find_targets

ROWS, BATCH = 96, 8


def forwards(trainer: Any) -> list[int]:
    """Counts calls of the base model from here on."""
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    trainer.model.get_base_model().register_forward_pre_hook(count)
    return counted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "preset", "steps"),
    [
        ("igu-lora", "recommended", 60),
        ("igu-lora", "paper", 60),
        ("igu-lora", "official", 30),
        ("adalora", "paper", 20),
        ("i-lora", "loss-per-parameter", 60),
        ("i-lora", "paper", 12),
    ],
)
def test_passes_and_state_are_those_of_a_run(
    method: str, preset: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = read_question(
        {
            "budget": "r=2",
            "method": method,
            "preset": preset,
            "batch": BATCH,
            "steps": steps,
            "epochs": steps * BATCH / ROWS,
        }
    )
    allocation = RankAllocation(method, "r=2", preset=preset, scoring_data=scoring_rows(method))
    options: dict[str, Any] = {"rows": ROWS, "save_strategy": "no"}
    trainer = tiny_trainer(tmp_path, allocation, **options, max_steps=20)
    targets = {target.name: (target.d_in, target.d_out) for target in adapted(trainer)}
    predicted = extra_passes(question, list(targets))
    trains = predicted.search_steps or steps
    trainer.args.max_steps = trains if method == "i-lora" else steps
    allocation.attach(trainer)
    counted, held = forwards(trainer), [0]
    for kind in Smoother.__subclasses__():
        monkeypatch.setattr(kind, "add", watched(kind.add, held))
    trainer.train()
    assert counted[0] == trains + predicted.scoring + predicted.forward_only
    assert allocation.plan.provenance["scoring_passes"] == predicted.scoring
    assert allocation.plan.provenance["scoring_batches"] == predicted.scored_batches
    ranks = dict.fromkeys(targets, 4)
    trained = Trained(ranks, True, 0, 0, 0, 0, 0)
    assert held[0] == score_state(question, trained, targets).kept


def watched(add: Any, held: list[int]) -> Any:
    """The largest state of a smoother, after what it takes in."""

    def and_look(self: Any, measured: Any) -> None:
        add(self, measured)
        held[0] = max(held[0], self.state_bytes)

    return and_look


def scoring_rows(method: str) -> Any:
    if method != "i-lora":
        return None
    ids = torch.randint(5, 21, (40, 8), generator=torch.Generator().manual_seed(1))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids == 7).any(1).long().tolist()})


def adapted(trainer: Any) -> Any:
    base = trainer.model.get_base_model()
    from tests.conftest import tiny_config
    from transformers import BertForSequenceClassification

    assert isinstance(base, BertForSequenceClassification)
    with torch.device("meta"):
        plain = BertForSequenceClassification(tiny_config(num_labels=2))
    return find_targets(plain, r".*layer.*\.(query|value|dense)")


def test_a_run_that_is_too_short_is_refused() -> None:
    question = read_question({"budget": "r=2", "method": "igu-lora", "steps": 5})
    with pytest.raises(AllocationError, match="train longer"):
        extra_passes(question, ["a"])


@pytest.mark.parametrize(
    ("method", "preset", "scoring", "forward", "further"),
    [
        ("lora", None, 0, 0, 0),
        ("magnitude", None, 0, 0, 0),
        ("sensitivity-lora", "recommended", 0, 32, 0),
        ("sensitivity-lora", "paper", 32, 0, 0),
        ("gradient", None, 32, 0, 0),
        ("eva", None, 0, 64, 0),
    ],
)
def test_passes_before_training(method: str, preset: str | None, scoring: int, forward: int, further: int) -> None:
    found = extra_passes(read_question({"budget": "r=2", "method": method, "preset": preset}), ["a", "b"])
    assert (found.scoring, found.forward_only, found.further_backward) == (scoring, forward, further)


@pytest.mark.parametrize(
    ("estimator", "method", "preset"), [("gram", "sensitivity-lora", None), ("fisher", "sensitivity-lora", "paper")]
)
def test_state_of_a_calibration(estimator: str, method: str, preset: str | None) -> None:
    from tests.conftest import random_batch, tiny_config
    from transformers import BertForSequenceClassification

    from lorank.scoring.calibration import calibrate

    model = BertForSequenceClassification(tiny_config(num_labels=2)).eval()
    targets = find_targets(model)
    sums = calibrate(model, targets, [random_batch()], estimator)  # type: ignore[arg-type]
    held = [*sums.columns.values(), *sums.tokens.values(), *sums.outputs.values()]
    question = read_question({"budget": "r=2", "method": method, "preset": preset})
    shapes = {target.name: (target.d_in, target.d_out) for target in targets}
    predicted = score_state(question, Trained(dict.fromkeys(shapes, 2), False, 0, 0, 0, 0, 0), shapes)
    assert predicted.kept == sum(tensor.numel() * tensor.element_size() for tensor in held)
