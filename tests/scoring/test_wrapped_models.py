"""A model inside of what speeds it up or spreads it is scored as the model itself, and its plan fits that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from tests.scoring.calibration_cases import batches_of, make
from torch import nn

import lorank
from lorank.errors import LorankWarning, PlanError
from lorank.model_parts import unwrapped
from lorank.scores import ImportanceScores

BATCHES = batches_of("decoder", 6, 3)
pytestmark = pytest.mark.filterwarnings("ignore:the model is wrapped:lorank.errors.LorankWarning")


def compiled_in_place(model: Any) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_before(model: Any) -> nn.Module:
    """Hooks that come after the first run are not in the code that was compiled."""
    model.model.layers[0].compile(backend="eager")
    model(**BATCHES[0])
    return model


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


WRAPPED: dict[str, Callable[[Any], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "a block compiled and run": compiled_before,
    "data parallel": nn.DataParallel,
    "data parallel of compiled": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "prepared by accelerate": lambda model: Accelerator(cpu=True).prepare(model),
}


def same(one: ImportanceScores, other: ImportanceScores) -> None:
    assert list(one.scores) == list(other.scores)
    for name, values in one.scores.items():
        assert float(other.scores[name][0]) == pytest.approx(float(values[0]), rel=1e-9)


@pytest.mark.parametrize("how", WRAPPED)
def test_it_is_the_model_inside_that_is_scored(how: str) -> None:
    model = WRAPPED[how](make("decoder"))
    for options in ({}, {"estimator": "fisher"}, {"method": "magnitude"}):
        found, plain = (lorank.score(each, BATCHES, **options) for each in (model, make("decoder")))
        same(found, plain)
        assert found.provenance["base_parameters"] == plain.provenance["base_parameters"]
        assert found.provenance["model"] == plain.provenance["model"]
    plan = lorank.allocate(found, "r=2")
    adapted = get_peft_model(make("decoder"), plan.lora_config(task_type="CAUSAL_LM"))
    assert sum(p.numel() for n, p in adapted.named_parameters() if ".lora_" in n) == plan.spent


def test_one_of_several_processes(tmp_path: Path) -> None:
    if torch.distributed.is_initialized():
        pytest.skip("a process group is there already")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        same(
            *(
                lorank.score(model, BATCHES, estimator="kfac")
                for model in (distributed(make("decoder")), make("decoder"))
            )
        )
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["compiled", "data parallel"])
def test_a_wrapped_model_is_not_to_be_adapted(how: str) -> None:
    """PEFT does not match the plan's names in it: every module would get the largest rank."""
    model = WRAPPED[how](make("decoder"))
    with pytest.warns(LorankWarning, match=r"is wrapped \(.*\), and what is inside is scored"):
        plan = lorank.allocate(lorank.score(model, method="magnitude"), "r=2")
    with pytest.raises(PlanError, match=r"adapt what is inside \(lorank\.model_parts\.unwrapped\(model\)\)"):
        plan.check_model(model)
    plan.check_model(unwrapped(model))
