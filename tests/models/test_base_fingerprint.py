"""A base model that changed between a kill and its continuation is noticed."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lorank.errors import OutputError
from lorank.models import base_fingerprint as module
from lorank.models.base_fingerprint import base_fingerprint, file_sum
from lorank.models.pretrained import Pretrained
from lorank.runs.output import locked_directory
from lorank.tasks.data import load_task_data

PROVENANCE = {"base_parameters": 1, "versions": {}}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 5] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_text(name: str) -> Any:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + "\n")


def lock(directory: Path, recipe: Any) -> None:
    with locked_directory(directory, recipe, load_task_data(recipe.data), PROVENANCE):
        pass


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weight, "files.model.safetensors was"),
        (change_text("config.json"), "files.config.json was"),
        (change_text("tokenizer.json"), "files.tokenizer.json was"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "files.tokenizer_config.json was .*, now None"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
            "files.chat_template.jinja was None",
        ),
    ],
    ids=["weights", "config", "tokenizer", "file removed", "chat template"],
)
def test_a_run_is_not_continued_with_another_base(
    change: Any, named: str, folder: Path, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model=str(folder))
    lock(tmp_path / "out", recipe)
    (folder / "README.md").write_text("of no matter")
    lock(tmp_path / "out", recipe)
    change(folder)
    with pytest.raises(OutputError, match=f"the base model or its tokenizer changed since this run began: {named}"):
        lock(tmp_path / "out", recipe)


def test_a_folder_of_an_earlier_version_is_continued(folder: Path, tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=str(folder))
    lock(tmp_path / "out", recipe)
    path = tmp_path / "out" / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    del content["resolved"]["base"]
    path.write_text(yaml.safe_dump(content))
    change_weight(folder)
    lock(tmp_path / "out", recipe)


def test_a_hub_model_is_its_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub" / "models--someone--model"
    (hub / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (hub / "refs" / name).write_text(commit)
        shutil.copytree(folder, hub / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_fingerprint(Pretrained("someone/model")) == {"commit": "a" * 40}
    assert base_fingerprint(Pretrained("someone/model", revision="v1")) == {"commit": "b" * 40}
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *_, **__: None)
    assert base_fingerprint(Pretrained("someone/model")) == {}


def test_large_weights_are_sampled_in_every_tensor(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.safetensors", {f"layer.{k}": torch.randn(100, 100) for k in range(4)}

    def sums() -> tuple[str, str]:
        save_file(tensors, path)
        return file_sum(path), file_sum(path, whole=1000)

    whole, sampled = sums()
    assert re.fullmatch("[0-9a-f]{64}", whole)
    assert re.fullmatch("sampled [0-9a-f]{64}", sampled)
    assert sums() == (whole, sampled)
    for name in tensors:  # trained: every entry is another
        kept = tensors[name]
        tensors[name] = kept * 1.001
        assert sums()[1] != sampled
        tensors[name] = kept
    tensors["layer.9"] = tensors.pop("layer.0")  # renamed, the same bytes
    assert sums()[1] != sampled
    # What the samples do not reach is not promised: one entry in the middle of a large tensor.
    tensors["layer.0"] = tensors.pop("layer.9")
    tensors["layer.1"][50, 50] += 1
    assert (sums()[0] != whole, sums()[1] == sampled) == (True, True)


def test_other_large_files_are_sampled_at_even_places(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bytes(100_000))
    before = file_sum(path, whole=1000)
    path.write_bytes(bytes(50_000) + b"\x01" + bytes(49_999))
    assert file_sum(path, whole=1000) != before
