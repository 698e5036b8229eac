"""Trainings that one process makes, and two processes with a sharded base; `python -m ... FOLDER CASE...` makes and saves some.

accelerate remembers in the environment that a Trainer had FSDP: cases without it come first.

In double precision and without dropout, so that they differ by nothing but the number of processes.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import random_batch, tiny_config, tiny_trainer
from tests.in_training.fsdp_on_cpu import shard_on_cpu
from tests.in_training.trl_cases import WORDS, word_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    set_seed,
)

from lorank import AllocationLoop, RankAllocation, RankPlan
from lorank.processes import leave_processes, processes

STEPS = 8
_CUTS = {"every": 1, "begin": 0.2, "end": 0.6, "interval": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": _CUTS,
    "igu-lora": {**_CUTS, "estimator": "trapezoid", "intervals": "auto", "tolerance": 0.1},
    "i-lora": {"preset": "paper", "scoring_batch_size": 5},  # shares of two processes are 2 and 3
}
# transformers has BertEmbeddings among what is not split, and accelerate would shard the embedding inside of it once more.
SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}
Ended = tuple[RankPlan, PeftModel]


def tiny_model() -> PeftModel:
    """A head trains beside the adapter."""
    set_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    base = BertForSequenceClassification(tiny_config(num_labels=2, **quiet)).double()
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "intermediate.dense"], task_type="SEQ_CLS")
    return get_peft_model(base, lora, autocast_adapter_dtype=False)


def in_a_loop(method: str, *, sharded: bool = True, shard_first: bool = False, kept: bool = False) -> Ended:
    """Two micro-batches a step; a process has its share of each. I-LoRA's plan is trained after it, without an allocation.

    `kept`: the model is sharded as one, and stays gathered from a forward pass to the end of the backward pass.
    """
    model, world = tiny_model(), processes().num_processes
    if world > 1 and shard_first:
        shard(model)
    rows = [{key: value[0] for key, value in random_batch(1, seed=100 + k).items()} for k in range(12)]
    scoring = {"scoring_data": rows, "collate": collate} if method == "i-lora" else {}
    allocation = AllocationLoop(model, method, "r=2", steps=STEPS, **scoring, **OPTIONS[method])
    if world > 1 and sharded and not shard_first:
        shard(model, kept=kept)
    optimizer = train(model, range(STEPS), allocation, ddp=world > 1 and not sharded)
    if method == "i-lora":  # each process has passed its share of the scoring batches
        assert bool(allocation.allocator.measure.shared.ways) == (world > 1)
    plan = allocation.finish(optimizer)
    if method == "i-lora":
        train(model, range(STEPS, STEPS + 3), ddp=world > 1 and not sharded)
    return plan, model


def shard(model: PeftModel, *, kept: bool = False) -> None:
    mesh = init_device_mesh("cpu", (processes().num_processes,))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for layer in () if kept else model.get_base_model().bert.encoder.layer:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def train(
    model: PeftModel, steps: range, allocation: AllocationLoop | None = None, *, ddp: bool = False
) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    rank, world = processes().process_index, processes().num_processes
    called = torch.nn.parallel.DistributedDataParallel(model) if ddp else model
    called.train()
    for step in steps:
        for micro in range(2):
            own = {key: value[rank::world] for key, value in random_batch(4, seed=2 * step + micro).items()}
            (called(**own).loss / 2).backward()
        if allocation is not None:
            allocation.after_backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 0.5)
        if allocation is not None:
            allocation.before_step()
        optimizer.step()
        if allocation is not None:
            allocation.after_step(optimizer)
        optimizer.zero_grad()
    return optimizer


def in_a_trainer(
    method: str,
    folder: Path,
    *callbacks: TrainerCallback,
    fsdp: bool = True,
    attach: bool = True,
    resume: Path | None = None,
    **options: Any,
) -> Ended:
    """Accumulated gradients, a head, clipping, checkpoints; I-LoRA's factors are kept."""
    world = processes().num_processes
    if fsdp and world > 1:
        options |= SHARDED
    if resume is not None:
        options["resume_from_checkpoint"] = str(resume)
    rows = {"scoring_data": tiny_trainer(folder).eval_dataset, "factors": "kept"} if method == "i-lora" else {}
    allocation = RankAllocation(method, "r=2", orthogonality_added="after-clipping", **rows, **OPTIONS[method])
    trainer: Trainer = tiny_trainer(
        folder,
        *([] if attach else [allocation]),
        *callbacks,
        model=tiny_model(),
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        # BERT takes no notice of num_items_in_batch, and Trainer would multiply its loss by the number of processes.
        average_tokens_across_devices=False,
        **{"max_steps": STEPS, "save_steps": 3, **options},
    )
    if attach:
        allocation.attach(trainer)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model(str(folder / "adapter"))
    return allocation.plan, trainer.model


def in_sft_trainer(folder: Path) -> Ended:
    """TRL's, attached; the loss is divided by the tokens of all processes."""
    import trl  # slow to import

    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.3, **sizes))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    world = processes().num_processes
    layers = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    fsdp = {"fsdp": True, "fsdp_config": layers} if world > 1 else {}
    usual: dict[str, Any] = {"max_steps": STEPS, "per_device_train_batch_size": 4 // world, "use_cpu": True}
    usual |= {
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
    }
    rows = Dataset.from_list([{"text": " ".join(f"w{(k * j + j) % 20}" for j in range(6))} for k in range(32)])
    trainer = trl.SFTTrainer(
        model=get_peft_model(base.double(), lora, autocast_adapter_dtype=False),
        args=trl.SFTConfig(str(folder), **usual, **fsdp),
        train_dataset=rows,
        processing_class=word_tokenizer(),
    )
    allocation = RankAllocation("igu-lora", "r=2", **OPTIONS["igu-lora"]).attach(trainer)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return allocation.plan, trainer.model


def save(ended: Ended, folder: Path) -> None:
    """Plan and adapter, by the first process, where no Trainer has saved the adapter."""
    plan, model = ended
    if processes().is_main_process:
        if not (folder / "adapter").exists():
            model.save_pretrained(str(folder / "adapter"))
        (folder / "ranks.json").write_text(json.dumps(plan.ranks))


def cases(folder: Path) -> dict[str, Callable[[], Ended]]:
    """By name, which is the folder that a case leaves."""
    found: dict[str, Callable[[], Ended]] = {}
    for method in OPTIONS:
        found[f"loop-{method}"] = lambda method=method: in_a_loop(method)
        found[f"loop-ddp-{method}"] = lambda method=method: in_a_loop(method, sharded=False)
        found[f"loop-kept-{method}"] = lambda method=method: in_a_loop(method, kept=True)
        found[f"loop-sharded-first-{method}"] = lambda method=method: in_a_loop(method, shard_first=True)
        for kind, fsdp in (("fsdp", True), ("ddp", False)):
            name = f"{kind}-{method}"
            found[name] = lambda name=name, fsdp=fsdp, method=method: in_a_trainer(method, folder / name, fsdp=fsdp)
    for kind, fsdp in (("fsdp", True), ("ddp", False)):
        for step in (3, 6):  # the last cut is at step 5
            name, whole = f"{kind}-resumed-{step}", folder / f"{kind}-igu-lora/checkpoint-{step}"
            found[name] = lambda name=name, whole=whole, fsdp=fsdp: in_a_trainer(
                "igu-lora", folder / name, fsdp=fsdp, resume=whole
            )
    killed, known = folder / "killed", folder / "fsdp-adalora-callback"
    found[known.name] = lambda: in_a_trainer("adalora", known, attach=False)
    found["sft"] = lambda: in_sft_trainer(folder / "sft")
    found["killed"] = lambda: in_a_trainer("igu-lora", killed, Killed(killed))
    found["after-killed"] = lambda: in_a_trainer("igu-lora", folder / "after-killed", resume=killed / "checkpoint-3")
    return found


class Killed(TrainerCallback):
    """The second process is gone in step 5, as by the kernel where memory is short; when is left in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4 and processes().process_index == 1:
            (self.folder / "killed at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, names: list[str]) -> None:
    shard_on_cpu()
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        save(cases(folder)[name](), folder / name)
        processes().wait_for_everyone()
    leave_processes()


if __name__ == "__main__":
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # older transformers take it from here alone
    main(Path(sys.argv[1]), sys.argv[2:])
