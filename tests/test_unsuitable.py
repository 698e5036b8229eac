"""Layers that cannot carry an adapter are no targets: by default with one warning, asked for by name with an error."""

import copy
from typing import Any

import pytest
import torch
import transformers as T
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import nn

import lorank
from lorank.errors import LorankWarning, PlanError, TargetError
from lorank.targets import Target, find_targets
from lorank.unsuitable import unsuitable

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
SIZES |= {"num_key_value_heads": 2}
SHARED = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MLP = {"gate_proj", "up_proj", "down_proj"}


def model_of(name: str) -> Any:
    if name == "qwen3-next":
        kinds = ["linear_attention", "full_attention"]
        return T.Qwen3NextForCausalLM(T.Qwen3NextConfig(**SIZES, **SHARED, **LINEAR, head_dim=8, layer_types=kinds))
    if name == "qwen3-moe":
        sizes = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "mlp_only_layers": [0]}
        return T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(**SIZES, **sizes, head_dim=8))
    if name == "llama4":
        sizes = {"intermediate_size_mlp": 32, "num_local_experts": 2, "num_experts_per_tok": 1}
        return T.Llama4ForCausalLM(T.Llama4TextConfig(**SIZES, **sizes, head_dim=8, interleave_moe_layer_step=2))
    if name == "mamba":
        return T.MambaForCausalLM(T.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    assert name == "attention of torch.nn"
    return nn.ModuleDict(
        {"layers": nn.ModuleList([nn.ModuleDict({"att": nn.MultiheadAttention(8, 2), "up": nn.Linear(8, 8)})])}
    )


CASES = [
    ("qwen3-next", MLP, "replaced by PEFT, in models of type 'qwen3_next'"),  # of the shared expert
    ("qwen3-moe", MLP, "replaced by PEFT, in models of type 'qwen3_moe'"),  # of a dense layer
    ("llama4", {"router"}, "is a Llama4Router, whose output is no single tensor"),
    ("mamba", {"out_proj", "dt_proj", "x_proj"}, "is refused by PEFT in models of type 'mamba'.*read by MambaMixer"),
    ("attention of torch.nn", {"out_proj"}, "weight read by MultiheadAttention past the layer"),
]


@pytest.mark.parametrize(("name", "leaves", "why"), CASES, ids=[case[0] for case in CASES])
def test_what_cannot_be_adapted_is_no_target(name: str, leaves: set[str], why: str) -> None:
    model = model_of(name)
    for select in (None, "all-linear", ".*"):
        with pytest.warns(LorankWarning, match=why) as said:
            targets = find_targets(model, select)
        assert len(said) == 1
        assert targets
        if name != "llama4":  # whose experts beside the router are plain
            assert not leaves & {target.name.rpartition(".")[2] for target in targets}
    for leaf in sorted(leaves):
        with pytest.raises(TargetError, match=f"targets '{leaf}' match only layers that cannot be adapted"):
            find_targets(model, [leaf])
        with pytest.raises(TargetError, match="only layers that cannot be adapted"):
            find_targets(model, rf".*\.{leaf}")


@pytest.mark.parametrize("name", ["qwen3-next", "qwen3-moe", "llama4", "mamba"])
def test_what_peft_trains_is_the_plan(name: str) -> None:
    model = model_of(name)
    with pytest.warns(LorankWarning, match="left out of the targets"):
        scores = lorank.score(model, method="magnitude", targets="all-linear")
    plan = lorank.allocate(scores, "r=2", max_rank=4)
    adapted = get_peft_model(model, plan.lora_config(task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == plan.spent


def test_a_plan_knows_its_model_type_and_refuses_what_peft_would_replace() -> None:
    model = model_of("qwen3-moe")
    with pytest.warns(LorankWarning, match="left out"):
        plan = lorank.allocate(lorank.score(model, method="magnitude"), "r=2")
    assert plan.provenance["model_type"] == "qwen3_moe"
    name = "model.layers.0.mlp.up_proj"
    by_hand = lorank.RankPlan({name: 2}, {name: 48}, "96", 96, provenance={"model_type": "qwen3_moe"})
    with pytest.raises(PlanError, match=rf"'{name}' would be replaced by PEFT"):
        by_hand.lora_config()
    older = lorank.RankPlan({name: 2}, {name: 48}, "96", 96)  # plans used to say nothing about it
    assert older.lora_config().target_modules == {name}


def test_all_linear_is_what_peft_takes_but_for_heads_that_are_trained_whole() -> None:
    for model, more in (
        (T.LlamaForCausalLM(T.LlamaConfig(**SIZES)), set()),
        (T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES, tie_word_embeddings=True)), set()),
        (T.GPT2LMHeadModel(T.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64)), set()),
        (T.LlamaForSequenceClassification(T.LlamaConfig(**SIZES)), set()),
        (T.BertForSequenceClassification(T.BertConfig(**SIZES)), set()),
        (T.RobertaForSequenceClassification(T.RobertaConfig(**SIZES)), {"classifier.dense", "classifier.out_proj"}),
    ):
        whole = copy.deepcopy(LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
        peft = _maybe_include_all_linear_layers(whole, model).target_modules
        for word in ("all-linear", "All-Linear"):
            assert {target.name for target in find_targets(model, word)} == set(peft) - more, type(model).__name__


def test_a_head_that_is_tied_to_the_embedding_is_no_target() -> None:
    tied = T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES, tie_word_embeddings=True))
    with pytest.raises(TargetError, match="'lm_head' shares its weight with an embedding"):
        find_targets(tied, ["lm_head"])
    apart = T.Qwen2ForCausalLM(T.Qwen2Config(**SIZES, tie_word_embeddings=False))
    assert find_targets(apart, ["lm_head"]) == (Target("lm_head", 16, 64),)


def test_linear_layers_of_other_classes_stay_targets() -> None:
    class Quantised(nn.Linear):  # in its own way, which is not for a machine without its device
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel for this device")

    class Cast(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.to(self.weight.dtype))

    class Twice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([super().forward(x)] * 2)

    class Looks(nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.kept(x.to(self.kept.weight.dtype)) if isinstance(self.kept.weight, torch.Tensor) else x

    class Multiplies(nn.ModuleDict):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.read.weight.t() + self.kept(x)

    model = nn.Module()
    layers = {"a": Quantised(4, 4), "b": Cast(4, 4), "c": Twice(4, 4), "d": nn.Linear(4, 4)}
    looks, reads = Looks({"kept": nn.Linear(4, 4)}), Multiplies({"read": nn.Linear(4, 4), "kept": nn.Linear(4, 4)})
    layers |= {"e.kept": looks.kept, "f.read": reads.read, "f.kept": reads.kept}
    parents = dict.fromkeys("abcd", model) | {"e.kept": looks, "f.read": reads, "f.kept": reads}
    assert set(unsuitable(model, layers, parents)) == {"c", "f.read"}
