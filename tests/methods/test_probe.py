"""The probe: I-LoRA's search without a run, and a model that does not know of it afterwards."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tests.conftest import random_batch, tiny_config
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    get_scheduler,
    set_seed,
)

import lorank
from lorank.adapter.triplet import TripletAdapter
from lorank.errors import AdapterError, DataError, LorankError, LorankWarning, RecipeError, ScoresError
from lorank.methods.probe import _own_streams
from lorank.methods.temporary_triplets import temporary_triplets
from lorank.recipe.files import make_recipe
from lorank.targets import find_targets

# A few steps of a tiny model on random labels need not make the held-out loss smaller.
pytestmark = pytest.mark.filterwarnings("ignore:the short training made the held-out loss larger")
LOADER, HELD_OUT = ([random_batch(seed=seed) for seed in seeds] for seeds in (range(3), range(10, 14)))
STEPS: dict[str, Any] = {"method": "probe", "scoring_data": HELD_OUT, "steps": 8, "learning_rate": 2e-2}


def tiny_bert(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> BertForSequenceClassification:
    set_seed(0)
    quiet = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3, **quiet)).to(dtype)


def test_it_is_the_search_of_i_lora() -> None:
    """The same start, batches and seed: the scores of an AllocationLoop, and its plan."""
    scores = lorank.score(tiny_bert(), LOADER, seed=5, initial_rank=3, **STEPS)
    base = tiny_bert()
    targets = find_targets(base)
    with _own_streams(base, 5), temporary_triplets(base, targets, rank=3, scale=2.0) as (adapter, _):
        start = [factor.detach().clone() for factor in adapter.factors("all")]
    names = [target.name for target in targets]
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=names, task_type=TaskType.SEQ_CLS))
    options: dict[str, Any] = {"preset": "loss-per-parameter", "steps": 8, "seed": 5}
    held_out: Any = DataLoader(HELD_OUT, batch_size=None)  # type: ignore[arg-type]
    allocation = lorank.AllocationLoop(model, "i-lora", "r=2", scoring_data=held_out, **options)
    with torch.no_grad():
        for factor, value in zip(TripletAdapter.of(model).factors("all"), start, strict=True):
            factor.copy_(value)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=8)
    model.train()
    for step in range(8):
        model(**LOADER[step % 3]).loss.backward()
        allocation.after_backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        allocation.before_step()
        optimizer.step()
        allocation.after_step(optimizer)
        optimizer.zero_grad()
        schedule.step()
    plan = allocation.finish(optimizer)
    # The last cut drops units; what it saw of those that stay is what the probe saw.
    for name, values in allocation.scores.scores.items():
        assert scores.scores[name] == pytest.approx(values, rel=1e-6, abs=1e-12)
    assert scores.provenance["loss_reduction"] == pytest.approx(allocation.scores.provenance["loss_reduction"])
    assert scores.provenance["scoring_batches"] == 4
    assert lorank.allocate(scores, "r=2").ranks == plan.ranks
    assert lorank.allocate(scores, "r=2").provenance["rank_by"] == "score-per-parameter"


def everything(model: nn.Module) -> dict[str, Any]:
    """What may not change: the very modules and parameters, their values, gradients, flags, modes, hooks; random streams."""
    modules = [
        (name, id(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()
    ]
    parameters = [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    tensors |= {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    tensors |= {"torch": torch.get_rng_state(), "numpy": torch.tensor(np.random.get_state()[1].astype(np.int64))}
    return {
        "modules": modules,
        "parameters": parameters,
        "vars": sorted(vars(model)),
        "python": random.getstate(),
        **tensors,
    }


def interrupting(error: BaseException) -> Callable[..., Any]:
    calls = iter(range(100))

    def loss(model: nn.Module, batch: Any) -> Any:
        if next(calls) == 9:  # in the middle, where scores are made
            raise error
        return model(**batch).loss * 4, torch.ones(4)

    return loss


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), RuntimeError("no")])
def test_the_model_is_left_as_it_was(error: BaseException | None) -> None:
    model = tiny_bert(dropout=0.1)
    model.train()
    model.bert.encoder.layer[0].eval()
    model.bert.embeddings.requires_grad_(False)
    model(**LOADER[0]).loss.backward()
    rows = [{key: value[k] for key, value in batch.items()} for batch in LOADER for k in range(4)]
    loader = DataLoader(rows, batch_size=4, shuffle=True)  # draws from the streams
    before = everything(model)
    if error is None:
        one, two = (lorank.score(model, loader, seed=seed, **STEPS) for seed in (1, 1))
        assert one.fingerprint == two.fingerprint
    else:
        with pytest.raises(type(error)):
            lorank.score(model, loader, loss=interrupting(error), **STEPS)
    after = everything(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value, key


def test_a_loss_of_ones_own_is_the_models() -> None:
    def own(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss = nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
        return loss.sum(), torch.ones(len(loss))

    one, two = lorank.score(tiny_bert(), LOADER, **STEPS), lorank.score(tiny_bert(), LOADER, loss=own, **STEPS)
    for name, values in one.scores.items():
        assert two.scores[name] == pytest.approx(values, rel=1e-9)


def test_the_head_of_a_classifier_trains_and_that_of_a_language_model_does_not() -> None:
    found = {}
    for heads in (None, (), ("classifier", "bert.pooler.dense")):
        scores = lorank.score(tiny_bert(), LOADER, heads=heads, **STEPS)
        found[heads] = scores.fingerprint
        assert scores.provenance["probe"]["heads"] == list(("classifier",) if heads is None else heads)
    assert len(set(found.values())) == 3
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, other = ([{**batch, "labels": batch["input_ids"]} for batch in data] for data in (LOADER, HELD_OUT[:2]))
    for model in (
        LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, initializer_range=0.3, **sizes)).bfloat16(),
        GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=32, n_positions=16)),
    ):
        model.gradient_checkpointing_enable()
        scores = lorank.score(model, text, **{**STEPS, "scoring_data": other}, initial_rank=64)
        assert scores.provenance["probe"]["heads"] == []
        assert all(
            len(v) == min(t.d_in, t.d_out) for v, t in zip(scores.scores.values(), find_targets(model), strict=True)
        )


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"scoring_data": None}, RecipeError, "give scoring_data=, a loader of held-out"),
        ({"steps": None}, RecipeError, "needs steps=: it trains"),
        ({"steps": None, "learning_rate": None}, RecipeError, "steps= and learning_rate="),
        ({"steps": 3}, RecipeError, "steps: Input should be greater than or equal to 4"),
        ({"scoring_data": iter(HELD_OUT)}, DataError, "scoring_data of method 'probe' is list_iterator"),
        ({"scoring_data": HELD_OUT[0]}, DataError, "scoring_data is a single batch"),
        ({"scoring_data": LOADER}, RecipeError, "hold examples out"),
        ({"scoring_data": []}, DataError, "gives no batch"),
        ({"scoring_data": [{"pixels": torch.ones(1)}]}, DataError, "first scoring batch cannot be computed"),
        ({"scoring_data": 5}, DataError, "scoring_data of method 'probe' is int"),
        ({"scoring_data": [tuple(HELD_OUT[0].values())]}, DataError, "a batch is tuple"),
        ({"heads": ["head"]}, AdapterError, "heads name 'head'"),
        ({"heads": ["bert"]}, AdapterError, "is part of a head"),
        ({"learning_rate": 1e30}, LorankError, "not finite"),
        ({"stepps": 3}, RecipeError, "did you mean steps"),
        ({"preset": "recommended"}, RecipeError, "preset 'recommended' of i-lora is unknown"),
        ({"method": "prope"}, RecipeError, "did you mean probe.*eva, probe"),
    ],
)
def test_what_is_refused(options: dict, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        lorank.score(tiny_bert(), LOADER, **{**STEPS, **options})
    with pytest.raises(RecipeError, match="scoring_data is for method 'probe'"):
        lorank.score(tiny_bert(), LOADER, scoring_data=HELD_OUT)


def test_half_precision_heads_train_in_fp32_and_gradients_are_on_wherever_it_is_called() -> None:
    model = tiny_bert(dtype=torch.float16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        scores = lorank.score(model, LOADER, **STEPS)
    wide = lorank.score(tiny_bert(dtype=torch.float32), LOADER, **STEPS)
    assert all(np.isfinite(values).all() for values in scores.scores.values())
    found, expected = (np.concatenate(list(one.scores.values())) for one in (scores, wide))
    assert np.corrcoef(found, expected)[0, 1] > 0.9
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_a_training_that_makes_the_held_out_loss_larger_is_said() -> None:
    one, other = (
        [{**batch, "labels": torch.full_like(batch["labels"], label)} for batch in batches]
        for label, batches in enumerate((LOADER, HELD_OUT))
    )
    with pytest.warns(LorankWarning, match="made the held-out loss larger, by .*: these scores are shares of nothing"):
        scores = lorank.score(tiny_bert(), one, **{**STEPS, "scoring_data": other})
    assert scores.provenance["loss_reduction"] < 0


def test_scores_that_say_nothing_are_refused() -> None:
    def nothing(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(**batch).logits.sum() * 0, torch.ones(4)

    with pytest.raises(ScoresError, match="no influence on the held-out loss"):
        lorank.score(tiny_bert(), LOADER, loss=nothing, **STEPS)
    rows = [{key: value[0] for key, value in batch.items()} for batch in LOADER]
    loader, same = DataLoader(rows, batch_size=3), DataLoader(rows[:1], batch_size=1)
    with (
        pytest.warns(LorankWarning, match="1 of 1 scoring examples are in the training data"),
        pytest.warns(
            LorankWarning, match="the scoring set is a single batch of 1 example, so it is not known how far other"
        ),
    ):
        lorank.score(tiny_bert(), loader, **{**STEPS, "scoring_data": same})
    with pytest.warns(LorankWarning, match="4 of 8 scoring examples are in the training data"):
        lorank.score(tiny_bert(), LOADER, **{**STEPS, "scoring_data": [LOADER[0], HELD_OUT[0]]})


def test_modules_that_the_loss_does_not_reach_are_named() -> None:
    def of_the_first_layer(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(**batch, output_hidden_states=True).hidden_states[1].pow(2).sum(), torch.ones(4)

    with pytest.warns(LorankWarning, match=r"exactly 0 for 48 of 96 triplets, .*: bert\.encoder\.layer\.1\.attention"):
        lorank.score(tiny_bert(), LOADER, loss=of_the_first_layer, heads=(), initial_rank=8, **STEPS)


def test_a_recipe_names_the_method_that_is_the_same() -> None:
    content = {"model": "some/model", "budget": "r=2", "data": {"train": "a.tsv", "test": "b.tsv"}}
    for own in ({"method": "probe"}, {"method": "lora", "baselines": ["probe"]}):
        with pytest.raises(RecipeError, match=r"'probe' is of lorank\.score alone; write method: i-lora"):
            make_recipe({**content, **own})
