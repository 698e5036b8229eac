"""All that has to be mended is said at once, before anything is loaded or written."""

from dataclasses import asdict
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import TaskType
from rich.console import Console
from tests.conftest import save_tiny
from transformers import GPT2Config, GPT2Model

from lorank.errors import AllocationError, DataError, RecipeError
from lorank.findings import Findings, SeveralFindings
from lorank.models.pretrained import Pretrained
from lorank.recipe.files import make_recipe
from lorank.runs.prepare import prepare
from lorank.runs.run import run
from lorank.runs.score_recipe import score_recipe
from lorank.training import steps


def test_one_finding_is_raised_as_it_is_and_several_together() -> None:
    findings = Findings()
    findings.raise_all()
    with findings.check():
        raise DataError("no rows")
    with pytest.raises(DataError, match=r"^no rows$"):
        findings.raise_all()
    with findings.check():
        raise SeveralFindings([AllocationError("too much"), DataError("no rows")])
    with pytest.raises(RecipeError, match=r"^2 things have to be mended:\n- no rows\n- too much$"):
        findings.raise_all()
    with pytest.raises(ZeroDivisionError), findings.check():
        raise ZeroDivisionError


def test_every_finding_of_a_recipe_is_said_at_once(tiny_recipe: Any, tiny_folder: Path, tmp_path: Path) -> None:
    gpt = GPT2Config(vocab_size=21, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    folder = save_tiny(GPT2Model(gpt), tiny_folder, tmp_path / "gpt", pad_token="[NEW]")
    recipe = tiny_recipe(
        model=str(folder), budget="r=3", metrics=["bleu"], report_to="wandbb", data={"max_length": 64},
        measure={"scoring_batch_size": 64}, baselines=["igu-lora"], train={"max_steps": 1},
    )  # fmt: skip
    with pytest.raises(SeveralFindings) as caught:
        run(recipe, tmp_path / "out", Console(quiet=True))
    wanted = (
        *(
            "allowed: accuracy",
            "allowed: none",
            "has 16 positions",
            "raise triplets.initial_rank",
            "less than one batch",
        ),
        *("lower measure.every or smooth.window, raise cut.end", r"pads with '[NEW]'"),
    )
    said = [str(error) for error in caught.value.errors]
    assert len(said) == len(wanted)
    assert all(any(part in one for one in said) for part in wanted), said
    assert not (tmp_path / "out").exists()
    with pytest.raises(SeveralFindings, match=r"pads with '\[NEW\]'"):
        score_recipe(recipe.of("magnitude"), tmp_path / "scores.safetensors")


def test_what_depends_on_a_finding_is_not_said_besides(tiny_recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"^model: '/no/such/model' cannot be loaded"):
        prepare(tiny_recipe(model="/no/such/model"), ("lora",))


@pytest.mark.parametrize("seed", [-1, 2**32, 20261125123456])
def test_a_seed_that_numpy_cannot_take_is_refused(seed: int) -> None:
    files = {"train": "a.tsv", "test": "b.tsv"}
    with pytest.raises(RecipeError, match="seed: Input should be"):
        make_recipe({"model": "tiny", "budget": "r=1", "data": files, "seed": seed})
    assert make_recipe({"model": "tiny", "budget": "r=1", "data": files, "seed": 2**32 - 1}).seed == 2**32 - 1


def test_stages_get_the_values_of_the_recipe(tiny_recipe: Any, tiny_folder: Path) -> None:
    changes = {"seed": 7, "scale": 3.0, "lora_dropout": 0.2, "precision": "bf16", "log_every": 9}
    others = {"checkpoint_every": 11, "gradient_checkpointing": True, "group_by_length": False, "metrics": ["matthews"]}
    model = {"name": str(tiny_folder), "dropout": 0.3}
    recipe, prepared = prepare(tiny_recipe(model=model, **changes, **others), ("lora",))
    assert prepared.base == Pretrained(recipe.model.name, False, 0.3, dtype="fp32")
    assert prepared.task_type == TaskType.SEQ_CLS
    assert (prepared.section, prepared.metrics) == (recipe.data, ("matthews",))
    for name, value in asdict(prepared.settings).items():
        assert value == {**changes, **others}.get(name, getattr(recipe, name))
    assert prepared.provenance["seed"] == 7


def test_a_fresh_model_is_the_same_each_time(tiny_recipe: Any) -> None:
    _, prepared = prepare(tiny_recipe(), ("lora",))
    one, other = (prepared.load_model().model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_examples_in_a_step_are_said_where_they_are_no_batch(tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**train: int) -> str:
        file = StringIO()
        prepare(tiny_recipe(method="lora", train=train), ("lora",), Console(file=file, width=300))
        return file.getvalue()

    assert "optimizer step" not in said()
    wanted = "note: train: 16 examples in an optimizer step: batch_size 8 x gradient_accumulation 2"
    assert wanted in said(gradient_accumulation=2)
    monkeypatch.setattr(steps, "processes", lambda: SimpleNamespace(num_processes=4))
    assert "64 examples in an optimizer step: batch_size 8 x gradient_accumulation 2 x 4 processes" in said(
        gradient_accumulation=2
    )
