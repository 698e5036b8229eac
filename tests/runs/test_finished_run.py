"""A finished run that is asked for again: its adapter is the one that was measured, or is written again, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorank.artefact import file_checksum
from lorank.errors import OutputError
from lorank.runs.run import run

QUIET = Console(quiet=True)


@pytest.mark.parametrize("method", ["lora", pytest.param("igu-lora", marks=pytest.mark.long)])
def test_an_adapter_that_is_gone_is_written_again_and_another_one_is_refused(
    method: str, tiny_recipe: Any, tmp_path: Path
) -> None:
    own = {} if method == "lora" else {"triplets": {"initial_rank": 3}, "measure": {"every": 1}}
    recipe, weights = tiny_recipe(method=method, preset=None, **own), tmp_path / "adapter/adapter_model.safetensors"
    run(recipe, tmp_path, QUIET)
    digest = file_checksum(weights)
    assert json.loads((tmp_path / "metrics.json").read_text())["results"][method]["adapter_sha256"] == digest
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(OutputError, match=r"adapter_model\.safetensors is damaged or another one"):
        run(recipe, tmp_path, QUIET)
    content[-1] ^= 1
    weights.write_bytes(content)
    config = tmp_path / "adapter/adapter_config.json"
    was = config.read_text()
    config.write_text(was.replace('"lora_alpha"', '"lora_alpha": 999, "was"'))
    with pytest.raises(OutputError, match=r"adapter_config\.json is damaged or another one"):
        run(recipe, tmp_path, QUIET)
    config.write_text(was)
    run(recipe, tmp_path, QUIET)
    weights.unlink()
    with pytest.raises(OutputError, match=r"adapter_model\.safetensors is missing"):
        run(recipe, tmp_path, QUIET)
    shutil.rmtree(tmp_path / "adapter")
    run(recipe, tmp_path, QUIET)
    assert file_checksum(weights) == digest


def test_a_plan_that_is_gone_is_written_again_beside_an_adapter_that_the_search_kept(
    tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe(method="adalora", preset="paper")
    run(recipe, tmp_path, QUIET)
    files = [tmp_path / name for name in ("plan.json", "adapter/adapter_model.safetensors", "metrics.json")]
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    run(recipe, tmp_path, QUIET)
    assert [file.read_bytes() for file in files] == before
