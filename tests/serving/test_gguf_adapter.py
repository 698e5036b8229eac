"""GGUF adapters: names, numbers and the order of rows; `make serving` compares them with llama.cpp's own converter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from lorank.errors import AdapterError
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.export import export


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def test_every_update_is_the_trained_one_under_llama_cpps_rule(trained: Any, tmp_path: Path) -> None:
    """`alpha / rank * B A` of the file, with rows of query and key put back, is `s B A` of the trained adapter."""
    exported = export(trained("decoder"), tmp_path / "served", gguf=True)
    assert exported.gguf is not None
    fields = {key: field.contents() for key, field in GGUFReader(exported.gguf).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    files, held = AdapterFiles.read(trained("decoder")), tensors_of(exported.gguf)
    assert len(held) == 2 * len(files.pairs)
    kinds = {"q_proj": "attn_q", "k_proj": "attn_k", "o_proj": "attn_output", "gate_proj": "ffn_gate"}
    kinds |= {"up_proj": "ffn_up", "down_proj": "ffn_down"}
    heads = {"q_proj": 4, "k_proj": 2}
    for module, pair in files.pairs.items():
        layer, leaf = module.split(".")[2], module.rpartition(".")[2]
        a = torch.from_numpy(held[f"blk.{layer}.{kinds[leaf]}.weight.lora_a"])
        b = torch.from_numpy(held[f"blk.{layer}.{kinds[leaf]}.weight.lora_b"])
        if leaf in heads:
            size = len(b) // heads[leaf]
            # Row 2 i + j of a head is row j size/2 + i of transformers.
            order = [h * size + 2 * i + j for h in range(heads[leaf]) for j in (0, 1) for i in range(size // 2)]
            b = b[order]
        found = fields["adapter.lora.alpha"] / b.shape[1] * b.double() @ a.double()
        wanted = files.peft_scales()[module] * pair.b.double() @ pair.a.double()
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_what_has_no_gguf_form_is_refused_before_anything_is_written(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no GGUF adapter can be written for 'bert' models; allowed: llama"):
        export(trained("encoder"), tmp_path / "served", gguf=True)
    files = AdapterFiles.read(trained("decoder"))
    base = BaseLayers.of(files)
    head = {"base_model.model.lm_head.weight": torch.ones(base.shapes["lm_head"])}
    AdapterFiles(files.config, files.pairs, head, files.folder).write(tmp_path / "head")
    with pytest.raises(AdapterError, match=r"lm_head.weight' was trained whole"):
        export(tmp_path / "head", tmp_path / "served", gguf=True)
    assert not (tmp_path / "served").exists()
