"""Every loader of files, given mutations of what it reads: it reads them, or refuses them in the family's words, in seconds."""

import shutil
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from lorank.errors import LorankError
from tests.hostile_loaders import LOADERS, SLOW, World, said


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> World:
    return make_world(tmp_path_factory.mktemp("hostile"), tiny_folder)


def make_world(folder: Path, model: Path) -> World:
    base = AutoModelForSequenceClassification.from_pretrained(model)
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(folder / "adapter"))
    return World(folder / "files", model, folder / "adapter")


def check(name: str, world: World, data: st.DataObject) -> None:
    shutil.rmtree(world.folder, ignore_errors=True)
    world.folder.mkdir()
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            LOADERS[name](world, data)
        except LorankError as error:
            said(error)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", [name for name in LOADERS if name not in SLOW])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(name: str, world: World, data: st.DataObject) -> None:
    check(name, world, data)


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutated_file_is_used_or_refused(name: str, world: World, data: st.DataObject) -> None:
    check(name, world, data)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in LOADERS if name not in SLOW])
@settings(max_examples=3000, deadline=None)
@given(data=st.data())
def test_many_mutated_files_are_read_or_refused(name: str, world: World, data: st.DataObject) -> None:
    check(name, world, data)


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_many_mutated_files_are_used_or_refused(name: str, world: World, data: st.DataObject) -> None:
    check(name, world, data)
