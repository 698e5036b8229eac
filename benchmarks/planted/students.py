"""Students of a world: plain LoRA with the ranks of plans, side by side; and triplets whose ranks are decided while they train.

All see the same batches for a seed, and have the same steps, scale and schedule. The head and the base are frozen.
"""

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from worlds import World

import lorank
from lorank.adapter.convert import to_triplets
from lorank.adapter.orthogonality import add_orthogonality_gradient
from lorank.allocation.top_b import uniform_scores
from lorank.plan import RankPlan
from lorank.recipe.sections import TrainingSection
from lorank.targets import find_targets
from lorank.training.stacked_adapters import StackedAdapters
from lorank.training.stacked_training import losses_of, train_stacked

SCALE, BATCH, STEPS, INITIAL, CAP = 2.0, 32, 200, 12, 16
# Peak learning rates of plain LoRA and of triplets, chosen on worlds of seed 99, which no result uses (see tune.py).
RATES = {"small": (2e-2, 4e-2), "minilm": (1e-2, 2e-2), "smollm2": (2e-2, 3e-2)}
transformers.utils.logging.set_verbosity_error()

Ranks = Mapping[str, int]


def uniform_ranks(world: World, budget: int | None = None) -> dict[str, int]:
    """What uniform LoRA gets for the budget, to the last unit."""
    return dict(lorank.allocate(uniform_scores(dict(world.costs), 64), budget or world.budget).ranks)


def plan_of(world: World, ranks: Ranks) -> RankPlan:
    """A plan of these ranks."""
    spent = sum(rank * world.costs[name] for name, rank in ranks.items())
    return RankPlan(dict(ranks), dict(world.costs), str(spent), spent, SCALE)


def train_plans(
    world: World,
    plans: Mapping[str, Ranks],
    kind: str,
    seed: int,
    steps: int = STEPS,
    rates: Sequence[float] | None = None,
) -> StackedAdapters:
    """Plain LoRA with the ranks of each plan, all side by side."""
    stacked = StackedAdapters(
        world.base, find_targets(world.base), list(plans.values()), [seed] * len(plans), scale=SCALE
    )
    section = TrainingSection(learning_rate=RATES[kind][0], batch_size=BATCH)
    train_stacked(stacked, world.train.shuffled(BATCH, steps, seed), section, steps, rates)
    return stacked


def plan_losses(world: World, plans: Mapping[str, Ranks], kind: str, seed: int) -> dict[str, torch.Tensor]:
    """Name -> test losses `(examples,)` of a student with that plan."""
    found, names = dict[str, torch.Tensor](), list(plans)
    at_once = 40 if kind == "small" else 10  # what a GPU that many processes share has memory for
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        stacked = train_plans(world, {name: plans[name] for name in part}, kind, seed)
        found |= dict(zip(part, losses_of(stacked, world.test.batches(128)), strict=True))
    return found


def lora_model(world: World, ranks: Ranks | int, seed: int) -> PeftModel:
    """The base with a fresh PEFT LoRA: of a plan, or of one rank for all."""
    torch.manual_seed(seed)
    if isinstance(ranks, int):
        config = LoraConfig(r=ranks, lora_alpha=SCALE * ranks, target_modules=list(world.costs))
    else:
        config = plan_of(world, ranks).lora_config()
    return get_peft_model(copy.deepcopy(world.base), config)


@contextlib.contextmanager
def quiet() -> Iterator[str]:
    """A folder to work in; warnings of runs that are short on purpose are left out."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield folder


def trainer_of(
    model: Any,
    world: World,
    seed: int,
    folder: str,
    steps: int,
    rate: float,
    callbacks: Sequence[TrainerCallback] = (),
    held: int = 0,
) -> Trainer:
    """A Trainer of transformers on the world's examples, without the first `held`."""
    arguments = TrainingArguments(
        folder, max_steps=steps, learning_rate=rate, per_device_train_batch_size=BATCH, seed=seed, warmup_steps=0.06,
        report_to="none", save_strategy="no", logging_strategy="no", use_cpu=world.train.ids.device.type == "cpu",
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    return Trainer(
        model,
        arguments,
        train_dataset=world.train.part(held),
        data_collator=lambda batch: batch,
        callbacks=list(callbacks),
    )


@torch.no_grad()
def test_losses(model: Any, world: World) -> torch.Tensor:
    """Loss of each test example, `(examples,)` float64."""
    model.eval()
    found = [
        (model(input_ids=one["input_ids"]).logits - one["labels"]).square().mean(1) for one in world.test.batches(256)
    ]
    return torch.cat(found).double().cpu()


def train_allocation(
    world: World, kind: str, seed: int, method: str, *, steps: int = STEPS, held: int = 0, **options: Any
) -> tuple[torch.Tensor, RankPlan]:
    """RankAllocation from one rank for all; test losses and the plan that it ends with."""
    with quiet() as folder:
        model = lora_model(world, INITIAL, seed)
        allocation = lorank.RankAllocation(method, world.budget, output_dir=folder, **options)
        trainer = trainer_of(model, world, seed, folder, steps, RATES[kind][1], held=held)
        allocation.attach(trainer)
        trainer.train()
        assert allocation.plan is not None
        return test_losses(trainer.model, world), allocation.plan


def searched_plan(world: World, kind: str, seed: int, preset: str, steps: int) -> dict[str, int]:
    """I-LoRA's plan: a search of so many steps, a tenth of the training examples held out to score on."""
    held = len(world.train) // 10
    scoring = torch.utils.data.DataLoader(
        world.train.part(0, held), batch_size=BATCH, drop_last=True, collate_fn=lambda b: b
    )
    _, plan = train_allocation(world, kind, seed, "i-lora", steps=steps, held=held, preset=preset, scoring_data=scoring)
    return dict(plan.ranks)


class Regulariser(TrainerCallback):
    """Keeps triplets orthonormal, as training with allocation does."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Add its gradient."""
        add_orthogonality_gradient(self.adapter, 0.1)


def train_triplets(world: World, kind: str, seed: int, ranks: Ranks, rate: float | None = None) -> torch.Tensor:
    """Triplets that have these ranks from the start: the parametrisation alone. Test losses."""
    with quiet() as folder:
        model = lora_model(world, ranks, seed)
        adapter = to_triplets(model, "default")
        trainer = trainer_of(model, world, seed, folder, STEPS, rate or RATES[kind][1], [Regulariser(adapter)])
        trainer.train()
        return test_losses(trainer.model, world)


def recovery(world: World, ranks: Ranks) -> tuple[float, float]:
    """Share of the planted parameters that a plan has too, and Spearman's rank correlation over modules."""
    from scipy.stats import spearmanr

    both = sum(world.costs[name] * min(rank, ranks.get(name, 0)) for name, rank in world.planted.items())
    planted, found = list(world.planted.values()), [ranks.get(name, 0) for name in world.planted]
    constant = len(set(planted)) == 1 or len(set(found)) == 1
    return both / world.budget, float("nan") if constant else float(spearmanr(planted, found)[0])
