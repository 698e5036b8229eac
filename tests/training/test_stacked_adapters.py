"""Adapters side by side: each is what PEFT's LoRA would be, trained alone."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import tiny_config
from transformers import (
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    get_scheduler,
)

from lorank.errors import TrainingError
from lorank.recipe.sections import TrainingSection
from lorank.targets import find_targets
from lorank.training.stacked_adapters import StackedAdapters
from lorank.training.stacked_training import check_stackable, losses_of, train_stacked, warmup_steps

STEPS, SCALE = 6, 2.0
SECTION = TrainingSection(learning_rate=0.05, weight_decay=0.1, max_grad_norm=0.3, warmup=0.3)


def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(num_labels=3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batches() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        ids = torch.randint(5, 20, (4, 6), generator=draw)
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        labels = torch.randint(0, 3, (4,), generator=draw)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def plans(names: list[str]) -> list[dict[str, int]]:
    return [dict.fromkeys(names, 2), {names[0]: 5, names[-1]: 1}, {names[1]: 3}]


def trained_alone(plan: dict[str, int], stacked: StackedAdapters, k: int, rate: float) -> PeftModel:
    """PEFT's LoRA from the same start, with torch's own clipping and optimizer: the plain version."""
    config = LoraConfig(
        r=1, lora_alpha=SCALE, target_modules=list(plan), modules_to_save=["classifier"],
        rank_pattern=plan, alpha_pattern={name: SCALE * rank for name, rank in plan.items()}, task_type="SEQ_CLS",
    )  # fmt: skip
    model = get_peft_model(base(), config)
    stacked.into_peft(k, model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [
        {"params": [p for n, p in named if n.endswith("bias") is not on], "weight_decay": 0.1 * on}
        for on in (True, False)
    ]
    optimizer = torch.optim.AdamW(decays, lr=rate)
    scheduler = get_scheduler("linear", optimizer, warmup_steps(SECTION, STEPS), STEPS)
    model.eval()
    for step in range(STEPS):
        optimizer.zero_grad()
        model(**batches()[step % 3]).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 0.3)
        optimizer.step()
        scheduler.step()
    return model


def test_each_adapter_is_what_peft_trains_alone() -> None:
    model = base()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = find_targets(model)
    chosen, rates = plans([target.name for target in targets]), [0.05, 0.02, 0.05]
    options: Any = {"scale": SCALE, "heads": ["classifier"]}
    stacked = StackedAdapters(model, targets, chosen, [7, 7, 8], **options)
    fresh = StackedAdapters(model, targets, chosen, [7, 7, 8], **options)
    check_stackable(stacked, batches()[0])
    train_stacked(stacked, batches(), SECTION, STEPS, rates)
    together = losses_of(stacked, batches())
    assert together.shape == (3, 12)
    for k, plan in enumerate(chosen):
        alone = trained_alone(plan, fresh, k, rates[k])
        with torch.no_grad():
            logits = torch.cat([alone(**batch).logits for batch in batches()])
        labels = torch.cat([batch["labels"] for batch in batches()])
        wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
        torch.testing.assert_close(together[k], wanted, rtol=2e-3, atol=2e-4)
        written = get_peft_model(base(), alone.peft_config["default"])
        stacked.into_peft(k, written)
        torch.testing.assert_close(written.eval()(**batches()[0]).logits, logits[:4], rtol=2e-3, atol=2e-4)
    # The model is as it was.
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_units_of_one_seed_start_the_same_in_every_plan_and_stack() -> None:
    model = base()
    targets = find_targets(model)
    name = targets[0].name
    small = StackedAdapters(model, targets, [{name: 2}], [3], scale=1.0)
    large = StackedAdapters(model, targets, [{name: 1}, {name: 6}], [4, 3], scale=1.0)
    torch.testing.assert_close(small.factors(0)[name][0], large.factors(1)[name][0][:2], rtol=0, atol=0)
    assert float(small.factors(0)[name][0].abs().max()) <= targets[0].d_in ** -0.5


def test_a_model_whose_examples_change_each_other_is_refused() -> None:
    model = base()
    targets = find_targets(model)
    chosen = plans([target.name for target in targets])
    # What is normalised over the batch is of all adapters at once.
    model.classifier.register_forward_hook(lambda module, args, out: out - out.mean(0))
    stacked = StackedAdapters(model, targets, chosen, [0, 0, 0], scale=SCALE)
    with pytest.raises(TrainingError, match="side by side"):
        check_stackable(stacked, batches()[0])
    assert all(not b.any() for b in stacked.b.values())


def test_rows_that_belong_to_no_example_are_refused() -> None:
    """DeBERTa projects the relative positions of all examples at once, by the layers of its queries and keys."""
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    positions = {
        "relative_attention": True,
        "position_buckets": 8,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    model = DebertaV2ForSequenceClassification(
        DebertaV2Config(num_labels=3, **small, **positions, position_biased_input=False)
    ).eval()
    targets = find_targets(model)
    stacked = StackedAdapters(model, targets, [{target.name: 2 for target in targets}] * 2, [0, 1], scale=SCALE)
    with pytest.raises(TrainingError, match=r"belong to no single example.*--side-by-side 1"):
        check_stackable(stacked, batches()[0])
    train_stacked(stacked.only(0), batches(), SECTION, 1)  # alone it can be trained


def test_a_diverged_adapter_leaves_the_others_alone() -> None:
    model = base()
    targets = find_targets(model)
    chosen = plans([target.name for target in targets])[:2]
    wild = StackedAdapters(model, targets, chosen, [7, 7], scale=SCALE, heads=["classifier"])
    calm = StackedAdapters(model, targets, chosen[:1], [7], scale=SCALE, heads=["classifier"])
    train_stacked(wild, batches(), SECTION, STEPS, [0.05, 1e30])
    train_stacked(calm, batches(), SECTION, STEPS, [0.05])
    assert not bool(torch.isfinite(losses_of(wild, batches())[1]).all())
    torch.testing.assert_close(losses_of(wild, batches())[0], losses_of(calm, batches())[0], rtol=1e-4, atol=1e-5)
