"""Export, verify, load through plain PEFT, same logits: an encoder, a decoder and an encoder-decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.serving.conftest import FAMILIES, logits_of

from lorank.errors import AdapterError, OutputError
from lorank.serving.adapter_files import WEIGHTS, AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.export import export
from lorank.serving.forms import FORMS
from lorank.serving.verify import engine_verdicts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name: str, form: str, bases: dict[str, Path], trained: Any, tmp_path: Path) -> None:
    adapter = trained(name)
    if (name, form) == ("encoder", "llama.cpp"):
        with pytest.raises(AdapterError, match=r"llama.cpp would not load it: .*trained whole \(classifier\)"):
            export(adapter, tmp_path / "served", form)
        return
    exported = export(adapter, tmp_path / "served", form)
    served = AdapterFiles.read(tmp_path / "served")
    base = BaseLayers.of(served)
    assert tuple(engine_verdicts(served, AdapterFiles.read(adapter), base)) == exported.verdicts
    assert {verdict.engine for verdict in exported.verdicts if verdict.right} >= {"peft", "vllm"}
    wanted = logits_of(name, bases[name], adapter)
    torch.testing.assert_close(logits_of(name, bases[name], tmp_path / "served"), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - logits_of(name, bases[name])).abs().max() > 1e-2
    assert exported.padded == (form == "any")
    assert exported.compact_parameters == AdapterFiles.read(adapter).parameters


def test_a_padded_adapter_goes_back_to_the_trained_one(trained: Any, tmp_path: Path) -> None:
    export(trained("decoder"), tmp_path / "served")
    export(tmp_path / "served", tmp_path / "again", "peft")
    first, again = AdapterFiles.read(trained("decoder")), AdapterFiles.read(tmp_path / "again")
    assert {m: pair.rank for m, pair in again.pairs.items()} == {m: pair.rank for m, pair in first.pairs.items()}
    assert all(verdict.right for verdict in engine_verdicts(again, first, engines=["peft", "vllm"]))


def test_true_ranks_and_scales_are_in_a_file_of_their_own(trained: Any, tmp_path: Path) -> None:
    export(trained("decoder"), tmp_path / "served")
    content = json.loads((tmp_path / "served" / "served_adapter.json").read_text())
    files = AdapterFiles.read(trained("decoder"))
    assert {m: (e["rank"], e["scale"]) for m, e in content["modules"].items()} == {
        m: (pair.rank, files.peft_scales()[m]) for m, pair in files.pairs.items()
    }
    assert content["parameters"]["compact"] == files.parameters < content["parameters"]["file"]


def test_the_card_says_what_each_engine_does(trained: Any, tmp_path: Path) -> None:
    export(trained("decoder"), tmp_path / "served", "vllm")
    card = (tmp_path / "served" / "README.md").read_text()
    assert "## Served form `vllm`" in card
    assert "More Information Needed" not in card  # PEFT's empty form
    assert card.startswith("---\nbase_model:")
    assert "| vLLM, up to 0.31 | yes | `--enable-lora --max-lora-rank 8` |" in card
    assert "| SGLang | refused: rank_pattern" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_right_to_its_own_ulp(dtype: str, trained: Any, tmp_path: Path) -> None:
    exported = export(trained("decoder"), tmp_path / dtype, dtype=dtype)
    assert all(verdict.right for verdict in exported.verdicts)
    assert 1e-4 < max(verdict.error or 0.0 for verdict in exported.verdicts) < 1e-2
    assert AdapterFiles.read(tmp_path / dtype).dtype == getattr(torch, dtype)


def test_numbers_above_what_a_dtype_holds_are_refused(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    AdapterFiles.read(trained("decoder")).write(folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({key: tensor * (1e5 if "lora_B" in key else 1) for key, tensor in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"above what torch.float16 can hold; export with --dtype float32"):
        export(folder, tmp_path / "served", dtype="float16")
    assert not (tmp_path / "served").exists()
    assert not list(tmp_path.glob(".served*"))


def test_refusals_come_before_anything_is_written(bases: dict[str, Path], trained: Any, tmp_path: Path) -> None:
    adapter = trained("decoder")
    for options, message in (
        ({"form": "vlm"}, r"form 'vlm' is unknown \(did you mean vllm\?\)"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"base": "nowhere"}, "base model 'nowhere' cannot be read"),
        ({"base": str(bases["encoder"])}, "task|does not have as a linear layer|cannot be read"),
    ):
        with pytest.raises(AdapterError, match=message):
            export(adapter, tmp_path / "served", **options)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine.txt").touch()
    with pytest.raises(OutputError, match="is there already"):
        export(adapter, tmp_path / "served")
    assert [path.name for path in tmp_path.rglob("*")] == ["served", "mine.txt"]


def test_a_base_model_that_cannot_be_read_matters_to_the_padded_form_only(trained: Any, tmp_path: Path) -> None:
    files = AdapterFiles.read(trained("decoder"))
    AdapterFiles({**files.config, "base_model_name_or_path": "gone"}, files.pairs, {}, files.folder).write(
        tmp_path / "a"
    )
    assert "'gone' cannot be read" in export(tmp_path / "a", tmp_path / "b", "vllm").unread_base
    with pytest.raises(AdapterError, match=r"'gone' cannot be read.*--base"):
        export(tmp_path / "a", tmp_path / "c")


def test_an_adapter_of_zeros_has_nothing_to_export(trained: Any, tmp_path: Path) -> None:
    files = AdapterFiles.read(trained("decoder"))
    zeros = {m: type(pair)(pair.a * 0, pair.b * 0) for m, pair in files.pairs.items()}
    AdapterFiles(files.config, zeros, {}, files.folder).write(tmp_path / "zeros")
    with pytest.raises(AdapterError, match="holds zeros only"):
        export(tmp_path / "zeros", tmp_path / "served")


def test_tensors_that_peft_does_not_load_are_refused(trained: Any, tmp_path: Path) -> None:
    files = AdapterFiles.read(trained("decoder"))
    AdapterFiles({**files.config, "target_modules": ["q_proj"]}, files.pairs, {}, files.folder).write(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"target_modules does not match, .* which PEFT does not load"):
        export(tmp_path / "a", tmp_path / "b")


def test_places_that_cannot_be_written_to(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "out", Path("/proc/nothing/out")):
        with pytest.raises(OutputError, match="cannot be made"):
            export(trained("decoder"), output)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(trained("decoder"), Path())  # the folder that one stands in
    assert (tmp_path / "here" / WEIGHTS).is_file()


def test_files_can_be_read_by_others(trained: Any, tmp_path: Path) -> None:
    export(trained("decoder"), tmp_path / "served", gguf=True)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "served").iterdir()} == {0o644}
