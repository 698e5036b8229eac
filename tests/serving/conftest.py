"""A tiny encoder, decoder and encoder-decoder as folders, and an adapter of mixed ranks for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.conftest import tiny_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    set_seed,
)

from lorank.plan import RankPlan
from lorank.targets import find_targets, unit_costs

LABELS = ["good", "bad", "7"]
FAMILIES = {
    "encoder": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "decoder": (AutoModelForCausalLM, "CAUSAL_LM"),
    "encoder-decoder": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
}


def tiny_llama(**options: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=64, **{**sizes, **options})


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a config and random weights."""
    set_seed(0)
    marian = MarianConfig(
        vocab_size=32, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0, decoder_start_token_id=0,
        forced_eos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    models = {
        "encoder": BertForSequenceClassification(tiny_config(num_labels=3)),
        "decoder": LlamaForCausalLM(tiny_llama()),
        "encoder-decoder": MarianMTModel(marian),
    }
    folders = {name: tmp_path_factory.mktemp("bases") / name for name in models}
    for name, model in models.items():
        model.save_pretrained(folders[name])
    return folders


def plan_for(model: Any, name: str = "tiny") -> RankPlan:
    """Ranks from 0 to 4, in turn, and at least one projection that no layer adapts."""
    targets = find_targets(model)
    ranks = {
        target.name: 0 if "value" in target.name or "v_proj" in target.name else k % 5
        for k, target in enumerate(targets)
    }
    costs = unit_costs(targets)
    spent = sum(rank * costs[module] for module, rank in ranks.items())
    return RankPlan(ranks, costs, "here", spent, scale=1.7, provenance={"model": name, "method": "by hand"})


@pytest.fixture(scope="session")
def trained(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make (once) an adapter as a training leaves it: mixed ranks by patterns, B away from zero."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            family, task = FAMILIES[name]
            set_seed(1)
            base = family.from_pretrained(bases[name])
            model = get_peft_model(base, plan_for(base, str(bases[name])).lora_config(task_type=task))
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if ".lora_B." in key or "modules_to_save" in key:
                        parameter.normal_()
            made[name] = tmp_path_factory.mktemp("trained") / name
            model.save_pretrained(str(made[name]))
            if name == "encoder":
                (made[name] / "label_names.json").write_text(json.dumps(LABELS))
        return made[name]

    return make


def logits_of(name: str, base: Path, adapter: Path | None = None) -> torch.Tensor:
    """Logits on random tokens of the base model, with an adapter that plain PEFT loads."""
    model = FAMILIES[name][0].from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    ids = torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "encoder-decoder":
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.no_grad():
        return model.eval()(**inputs).logits
