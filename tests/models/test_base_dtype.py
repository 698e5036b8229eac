"""A base model in its own dtype; what trains beside the adapters is fp32, also where a matrix product would meet two dtypes."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import TaskType
from tests.conftest import tiny_writer
from transformers import AutoModelForCausalLM, BertConfig

from lorank.models.base_dtype import DTYPES, dtype_of_checkpoint
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained


@pytest.fixture
def bf16_folder(tiny_folder: Path, tmp_path: Path) -> str:
    folder = tiny_writer("decoder", tiny_folder, tmp_path / "decoder")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def test_the_dtype_of_a_checkpoint_is_what_its_config_says() -> None:
    for name, dtype in DTYPES.items():
        assert dtype_of_checkpoint(BertConfig(dtype=dtype)) == name
        assert dtype_of_checkpoint(BertConfig(dtype=str(dtype).removeprefix("torch."))) == name
    assert dtype_of_checkpoint(BertConfig()) == dtype_of_checkpoint(BertConfig(dtype=torch.float64)) == "fp32"


@pytest.mark.parametrize(("asked", "got"), [(None, "bf16"), ("fp32", "fp32"), ("fp16", "fp16")])
def test_a_model_is_loaded_in_the_dtype_that_is_asked_for_or_in_that_of_its_checkpoint(
    asked: str | None, got: str, bf16_folder: str
) -> None:
    model = load_task_model(Pretrained(bf16_folder, dtype=asked), TaskType.CAUSAL_LM, ()).model
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[got]}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_head_of_a_narrow_classifier_is_fp32_and_takes_what_the_base_gives(dtype: str, tiny_folder: Path) -> None:
    task = load_task_model(Pretrained(str(tiny_folder), dtype=dtype), TaskType.SEQ_CLS, ("bad", "good"))
    heads = {id(p) for name in task.heads for p in task.model.get_submodule(name).parameters()}
    assert heads
    for parameter in task.model.parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in heads else DTYPES[dtype])
    ids = torch.tensor([[2, 5, 9, 3]])
    for model in (task.model, deepcopy(task.model)):  # PEFT makes copies of what it saves
        logits = model.eval()(input_ids=ids).logits
        assert logits.dtype == torch.float32
        logits.sum().backward()


def test_an_fp32_model_is_left_as_it_is(tiny_folder: Path) -> None:
    model = load_task_model(Pretrained(str(tiny_folder)), TaskType.SEQ_CLS, ("bad", "good")).model
    assert not any(module._forward_pre_hooks for module in model.modules())
