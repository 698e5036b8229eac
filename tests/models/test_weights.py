"""A loaded model has its checkpoint's weights: only a head may be new or of another size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import save_tiny, tiny_config, tiny_writer
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from lorank.errors import AdapterError, LorankWarning, RecipeError
from lorank.models.adapted_model import load_adapted
from lorank.models.loading import load_task_model
from lorank.models.pretrained import Pretrained

Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{key}": value for key, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


@pytest.fixture
def bert(tiny_folder: Path, tmp_path: Path) -> Path:
    set_seed(0)
    return save_tiny(BertModel(tiny_config()), tiny_folder, tmp_path / "bert")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("_orig_mod."), r"has the weight 'bert\.embeddings\.\S+' as '_orig_mod\.embeddings"),
        (prefixed("module.bert."), r"as 'module\.bert\.embeddings"),
        (without("layer.1."), r"has no weights for 'bert\.encoder\.layer\.1\.attention\.self\.query\.weight'"),
        (without("word_embeddings"), r"has no weights for 'bert\.embeddings\.word_embeddings\.weight'"),
    ],
)
def test_weights_that_are_not_the_checkpoints_are_named(
    change: Callable[[Tensors], Tensors], message: str, bert: Path
) -> None:
    rewrite(bert, change)
    with pytest.raises(RecipeError, match=message):
        load_task_model(Pretrained(str(bert)), TaskType.SEQ_CLS, ("no", "yes"))


def test_weights_of_another_shape_are_named(bert: Path) -> None:
    edit_config(bert, intermediate_size=48)
    message = (
        r"has 'bert\.encoder\.layer\.0\.intermediate\.dense\.weight' in shape \(32, 16\), its config says \(48, 16\)"
    )
    with pytest.raises(RecipeError, match=message):
        load_task_model(Pretrained(str(bert)), TaskType.SEQ_CLS, ("no", "yes"))


def test_layers_that_the_config_leaves_out_are_said(bert: Path) -> None:
    edit_config(bert, num_hidden_layers=1)
    with pytest.warns(LorankWarning, match=r"leaves out, 'encoder\.layer\.1\."):
        load_task_model(Pretrained(str(bert)), TaskType.SEQ_CLS, ("no", "yes"))


@pytest.mark.parametrize("family", [BertForMaskedLM, BertForSequenceClassification])
def test_a_head_may_be_new_or_of_another_size_and_a_pooler_new(family: Any, tiny_folder: Path, tmp_path: Path) -> None:
    set_seed(0)
    folder = save_tiny(family(tiny_config(num_labels=5)), tiny_folder, tmp_path)
    task = load_task_model(Pretrained(str(folder)), TaskType.SEQ_CLS, ("no", "yes"))
    assert task.heads == (("classifier", "bert.pooler.dense") if family is BertForMaskedLM else ("classifier",))
    saved, live = load_file(folder / "model.safetensors"), task.model.state_dict()
    same = [key for key in saved if key.startswith("bert.")]
    assert len(same) > 30
    assert all(torch.equal(saved[key], live[key]) for key in same)


def test_what_writes_has_every_weight(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tiny_writer("decoder", tiny_folder, tmp_path)
    base = Pretrained(str(folder))
    load_task_model(base, TaskType.CAUSAL_LM, ())  # tied embeddings: lm_head has no weight of its own
    edit_config(folder, vocab_size=48)
    with pytest.raises(
        RecipeError, match=r"'model\.embed_tokens\.weight' in shape \(32, 16\), its config says \(48, 16\)"
    ):
        load_task_model(base, TaskType.CAUSAL_LM, ())
    edit_config(folder, vocab_size=32, tie_word_embeddings=False)
    with pytest.raises(RecipeError, match=r"has no weights for 'lm_head\.weight'"):
        load_task_model(base, TaskType.CAUSAL_LM, ())


def test_a_base_that_lost_weights_is_not_merged_or_pruned(tiny_folder: Path, tmp_path: Path) -> None:
    set_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    ))  # fmt: skip
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(base)
    loaded = LlamaForCausalLM.from_pretrained(base)
    get_peft_model(loaded, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(str(adapter))
    load_adapted(adapter)
    edit_config(base, intermediate_size=48)
    with pytest.raises(AdapterError, match="cannot be loaded on"):
        load_adapted(adapter)
    edit_config(base, intermediate_size=32)
    rewrite(base, without("layers.1.mlp"))
    with pytest.raises(AdapterError, match=r"has no weights for 'model\.layers\.1\.mlp"):
        load_adapted(adapter)
