"""Links out of an adapter's folder: refused by name in every command that reads, copies or uploads the folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorank.errors import AdapterError, LorankError
from lorank.models.loading import load_without_weights
from lorank.received_files import check_adapter_folder
from lorank.runs.prune_adapter import prune_adapter
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.export import export
from lorank.serving.hub import push
from lorank.serving.merge import merge


@pytest.fixture(scope="session")
def plain_adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapter(plain_adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain_adapter, tmp_path / "adapter")
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "chat_template.jinja").write_text("SECRET")
    return tmp_path / "adapter"


def _push(folder: Path, output: Path) -> None:
    push(folder, "me/adapter")


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "verify": lambda folder, output: AdapterFiles.read(folder),
    "export": lambda folder, output: export(folder, output, "peft"),
    "merge": merge,
    "prune": lambda folder, output: prune_adapter(folder, "r=1", output, None),
    "push": _push,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_follows_a_link_out_of_the_folder(command: str, adapter: Path, tmp_path: Path) -> None:
    for name, target in (
        ("chat_template.jinja", "../secret"),
        ("README.md", str(tmp_path / "secret")),
        ("additional_chat_templates", "../secrets"),
        ("vocab.txt", "inner"),  # over a second link
        ("tokenizer_config.json", "../nothing yet"),
    ):
        link = adapter / name
        link.unlink(missing_ok=True)
        os.symlink(target, link)
        if target == "inner":
            os.symlink("../secret", adapter / "inner")
        with pytest.raises(
            AdapterError, match=rf"adapter/(inner|{name}) is a link to .* outside of the adapter's folder"
        ):
            COMMANDS[command](adapter, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        link.unlink()
        (adapter / "inner").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_adapters_own_files_are_no_links_out_of_it_either(name: str, adapter: Path, tmp_path: Path) -> None:
    (adapter / name).rename(tmp_path / name)
    os.symlink(tmp_path / name, adapter / name)
    for command in ("verify", "export", "merge", "prune"):
        with pytest.raises(AdapterError, match=rf"{name} is a link to"):
            COMMANDS[command](adapter, tmp_path / "out")


def test_links_inside_of_the_folder_and_to_it_are_followed(adapter: Path, tmp_path: Path) -> None:
    (adapter / "files").mkdir()
    (adapter / "README.md").rename(adapter / "files" / "card.md")
    os.symlink("files/card.md", adapter / "README.md")
    os.symlink(adapter / "files", adapter / "same files")
    os.symlink(adapter, tmp_path / "latest")
    export(tmp_path / "latest", tmp_path / "out", "peft")
    assert "Served form" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "README.md").is_symlink()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("below", ["", "adapter"])
def test_a_snapshot_of_the_hubs_cache_is_links_to_blobs(
    shared: bool, below: str, plain_adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--me--adapter"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / below).mkdir(parents=True)
    (repository / "blobs").mkdir()
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "files")
    shutil.copytree(plain_adapter, tmp_path / "files", dirs_exist_ok=True)
    for number, file in enumerate(sorted((tmp_path / "files").iterdir())):
        blob, store = repository / "blobs" / f"etag{number}", tmp_path / "hub" / "blobs" / "ab" / f"{number:064x}"
        store.parent.mkdir(parents=True, exist_ok=True)
        file.rename(store if shared else blob)
        if shared:
            os.symlink(f"../../blobs/ab/{store.name}", blob)
        os.symlink(f"{'../' if below else ''}../../blobs/{blob.name}", snapshot / below / file.name)
    export(snapshot / below, tmp_path / "served", "peft")
    assert (tmp_path / "served" / "tokenizer.json").is_file()
    assert not any(path.is_symlink() for path in (tmp_path / "served").iterdir())
    for target in ("../../refs", "../../../blobs/secret", "../../../models--other/blobs/etag"):
        os.symlink(f"{'../' if below else ''}{target}", snapshot / below / "vocab.txt")
        with pytest.raises(AdapterError, match=r"vocab.txt is a link to"):
            check_adapter_folder(snapshot / below)
        (snapshot / below / "vocab.txt").unlink()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json"])
def test_a_pipe_and_an_endless_text_are_not_opened(name: str, adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, model := tmp_path / "model")
    for folder, read in ((adapter, check_adapter_folder), (model, load_without_weights)):
        path = folder / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(LorankError, match=f"{name} is no plain file"):
            read(str(folder))
        path.unlink()
        (folder / "endless.json").touch()
        os.truncate(folder / "endless.json", 20 * 2**30)
        with pytest.raises(LorankError, match=r"endless\.json has 21,474,836,480 bytes; at most"):
            read(str(folder))
        (folder / "endless.json").unlink()
