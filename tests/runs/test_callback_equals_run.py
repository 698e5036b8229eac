"""I-LoRA in a user's own Trainer and in `lorank run` are one: the same plan and weights, bit for bit, in the same data order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lorank import ImportanceScores, RankAllocation, RankPlan
from lorank.runs.run import run
from lorank.runs.scoring_set import split_for_scoring
from lorank.targets import find_targets
from lorank.tasks.data import load_task_data
from lorank.training.trainer import SeededOrder


class OrderedTrainer(Trainer):
    """A user's Trainer, whose batches come in the order of a run of lorank."""

    order: SeededOrder

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order


@pytest.mark.parametrize("preset", [pytest.param("paper", marks=pytest.mark.long), "loss-per-parameter"])
def test_the_same_plan_and_weights(preset: str, tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(preset=preset, search={"max_steps": 8})
    run(recipe, tmp_path / "run", Console(quiet=True))

    tokenizer, data = AutoTokenizer.from_pretrained(recipe.model.name), load_task_data(recipe.data)
    train, scoring = split_for_scoring(recipe, data)

    def tokens(rows: Any) -> Any:
        encoded = rows.map(lambda row: tokenizer(row["text_1"], truncation=True, max_length=16), keep_in_memory=True)
        return encoded.remove_columns([name for name in ("text_1", "content") if name in encoded.column_names])

    def trainer(folder: str, rows: Any, model: Any, *callbacks: Any, **steps: int) -> OrderedTrainer:
        usual: dict[str, Any] = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "warmup_steps": 0.06}
        arguments = TrainingArguments(
            str(tmp_path / folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            seed=recipe.seed,
            **usual,
            **steps,
        )
        made = OrderedTrainer(
            model,
            arguments,
            train_dataset=tokens(rows),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=list(callbacks),
        )
        lengths = [len(ids) for ids in made.train_dataset["input_ids"]]
        made.order = SeededOrder(lengths, 8, recipe.seed, group_by_length=True)
        return made

    def base() -> Any:
        set_seed(recipe.seed)
        return AutoModelForSequenceClassification.from_pretrained(recipe.model.name, num_labels=2, pad_token_id=0)

    heads = ["classifier"]
    model = base()
    lora = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=[target.name for target in find_targets(model, None)],
        modules_to_save=heads,
        task_type="SEQ_CLS",
    )
    allocation = RankAllocation("i-lora", recipe.budget, preset=preset, scoring_data=tokens(scoring))
    first = trainer("first", train, get_peft_model(model, lora), allocation, max_steps=8, save_steps=4)
    allocation.attach(first)
    first.train()
    plan, scores = allocation.plan, ImportanceScores.load(tmp_path / "run" / "scores.safetensors")
    assert plan.ranks == RankPlan.load(tmp_path / "run" / "plan.json").ranks
    for name, values in scores.scores.items():
        assert (allocation.scores.scores[name] == values).all()
    ours, theirs = (
        load_file(tmp_path / f / "adapter_model.safetensors") for f in ("first/checkpoint-8", "run/search/checkpoint-8")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())

    model = base()
    second = trainer(
        "second",
        data.train,
        get_peft_model(model, plan.lora_config(task_type="SEQ_CLS", modules_to_save=heads)),
        max_steps=10,
    )
    second.train()
    second.save_model(str(tmp_path / "adapter"))
    ours, theirs = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "run/adapter"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
