"""Ranks decided in training in two processes with a sharded base (FSDP2), against one process, in several precisions.

usage: python benchmarks/sharded_precisions.py [--device cuda] [--file results/sharded_precisions.json]

Both processes share one GPU, so gloo joins them (NCCL wants a GPU for each). With it torch 2.11 ends in a segmentation fault
where Trainer gathers the sharded base to save it; so the adapter, which is whole in each process, is written as it is. A Llama
with random weights, Trainer, the same global batch. fp32; bf16: weights and computation; mixed: weights in fp32, computation in
bf16; 4bit: NF4, stored and computed in bf16; fp16: as mixed, with a loss scaler, on a GPU alone. Reported: ranks that differ,
the adapter's largest relative difference, and both for three controls: one process with the examples of every batch in another
order (turned), or with two halves of a batch accumulated, so that kernels see what they see in two processes (halves), and two
processes of which each holds the whole base (whole, DDP). For 4bit more, since a GPU's copy changes 16-bit patterns that read as
NaN (on a CPU a stand-in does): without what lorank does against it (changed), without all of that but the comparison of bits,
which is to end in an error (refused), and on a CPU with all of it (copied). For fp32 also one process whose first step a loss
scaler leaves out (short), as it does with fp16 and FSDP. What the file has of other cases is kept.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import (
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lorank import RankAllocation
from lorank.in_training import sharded_base
from lorank.processes import processes

STEPS, BATCH, LENGTH = 30, 8, 64
PRECISIONS = ("fp32", "bf16", "mixed", "4bit")
CUTS = {"every": 1, "begin": 0.2, "end": 0.7, "interval": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "adalora": CUTS,
    "igu-lora": {**CUTS, "estimator": "training-pass"},
    "i-lora": {"preset": "paper", "scoring_batch_size": BATCH, "factors": "kept"},
}


class Sentences(Dataset):  # type: ignore[type-arg]
    """Tokens that count upwards by a step of their own, from a place of their own: can be learned."""

    def __init__(self, count: int, *, turned: bool) -> None:
        self.count, self.turned = count, turned

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.turned:  # the other way round inside of its batch
            index = index // BATCH * BATCH + BATCH - 1 - index % BATCH
        ids = (torch.arange(LENGTH) * (1 + index % 7) + 11 * index) % 500
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def model_in(precision: str, folder: Path, device: str) -> Any:
    """The same values in each precision, read from a folder."""
    dtype = torch.float32 if precision in ("fp32", "mixed", "fp16") else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if precision == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,  # FSDP shards tensors of one dtype together
        )
    base = LlamaForCausalLM.from_pretrained(folder, **options)
    set_seed(0)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def case(precision: str, method: str, folder: Path, given: argparse.Namespace) -> None:
    """Train, and leave ranks, seconds and bytes beside the adapter."""
    world, device = processes().num_processes, given.device
    launched: dict[str, Any] = {}
    if world > 1:
        launched = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    if world > 1 and not given.whole:
        layers = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
        launched |= {"fsdp": True, "fsdp_config": {"version": 2, **layers}}
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // world // given.parts,
        gradient_accumulation_steps=given.parts,
        learning_rate=2e-3,
        bf16=precision not in ("fp32", "fp16"),
        fp16=precision == "fp16",
        use_cpu=device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **launched,
    )
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    scoring: dict[str, Any] = {"scoring_data": Sentences(32, turned=False)} if method == "i-lora" else {}
    allocation = RankAllocation(method, "r=4", **METHODS[method], **scoring)
    trainer = Ordered(
        model=model_in(precision, folder.parent.parent / "base", device),
        args=arguments,
        train_dataset=Sentences(STEPS * BATCH, turned=given.turned),
    )
    allocation.attach(trainer)
    if given.short:
        trainer.add_callback(WithoutFirstStep(allocation))
    trainer.train()
    adapter = {key: value.cpu() for key, value in get_peft_model_state_dict(trainer.model, _own(trainer.model)).items()}
    found = {
        "loss": trainer.state.log_history[-1]["train_loss"],
        "ranks": allocation.plan.ranks,
        "spent": allocation.plan.spent,
        "budget": allocation.plan.budget,
        "peak_bytes": 0 if device == "cpu" else torch.cuda.max_memory_allocated(),
    }
    if processes().is_main_process:
        save_file(adapter, folder / "adapter.safetensors")
        (folder / "found.json").write_text(json.dumps(found))


def _own(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's parameters alone: those of a sharded base would be gathered."""
    return {name: value.detach() for name, value in model.named_parameters() if "lora_" in name}


class Ordered(Trainer):
    """Rows in their order: every process count then has the same global batches."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class WithoutFirstStep(TrainerCallback):
    """The first step is left out, as a loss scaler leaves out a step with a fused optimizer: the schedule goes on."""

    def __init__(self, allocation: RankAllocation) -> None:
        self.allocation = allocation

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Nothing is scored, and nothing has a gradient."""
        if state.global_step == 0:
            self.allocation.leaves_out = True
            model.zero_grad(set_to_none=True)


def worker(given: argparse.Namespace) -> None:
    """All cases of one kind of launch; accelerate forgets nothing, so precisions come from new states."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and given.device != "cpu":
        torch.distributed.init_process_group("gloo")  # before accelerate takes NCCL
    if several and given.device == "cpu" and not given.whole:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.in_training.fsdp_on_cpu import copy_as_on_cuda, shard_on_cpu

        shard_on_cpu()
        if given.copy:
            copy_as_on_cuda()
    if given.copy in ("changed", "refused"):
        sharded_base.hold_for_sharding = lambda model, plugin: []
    if given.copy == "changed":
        sharded_base._refuse_changed = lambda *_, **__: None  # type: ignore[misc]
    for name in given.cases.split(","):
        precision, method = name.split(" ")
        own = given.worker / name
        own.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        try:
            case(precision, method, own, given)
        except Exception as error:
            (own / "error").write_text(f"{type(error).__name__}: {error}"[:2000])
            raise
        (own / "seconds").write_text(f"{time.perf_counter() - began:.1f}")


def launch(folder: Path, device: str, name: str, world: int, more: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """A launch of `world` processes; LOCAL_RANK is 0 in each, since they share a GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(world):
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": str(world),
            }
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, "--device", device, "--worker", str(folder), "--cases", name]
        with (folder.parent / f"{folder.name} {name} {rank}.log").open("wb") as log:
            command += more
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return started


def difference(one: Path, other: Path) -> float:
    """The largest over tensors of `|a - b| / |b|` (Frobenius); infinite where shapes differ."""
    left, right = (load_file(folder / "adapter.safetensors") for folder in (one, other))
    if {key: t.shape for key, t in left.items()} != {key: t.shape for key, t in right.items()}:
        return float("inf")
    return max(float((left[key] - right[key]).norm() / right[key].norm().clamp_min(1e-12)) for key in left)


def compared(work: Path, name: str, kind: str) -> dict[str, Any]:
    """What `kind` of launch found against one process."""
    found = work / kind / name
    if not (found / "found.json").exists():
        logs = sorted(work.glob(f"{kind} {name} *.log"))
        last = logs[0].read_text(errors="replace").strip().splitlines()[-1:] if logs else []
        return {"error": (found / "error").read_text() if (found / "error").exists() else "".join(last)}
    own, alone = (json.loads((work / k / name / "found.json").read_text()) for k in (kind, "one"))
    moved = sum(abs(own["ranks"].get(key, 0) - rank) for key, rank in alone["ranks"].items()) // 2
    gap = difference(found, work / "one" / name)
    same = {"same adapter as two": difference(found, work / "two" / name) == 0} if kind == "copied" else {}
    return {
        "ranks moved": moved,
        "of": sum(alone["ranks"].values()),
        "adapter difference": gap if gap != float("inf") else None,
        "loss": own["loss"],
        "spent": own["spent"],
        "budget": own["budget"],
        "peak_bytes": own["peak_bytes"],
        "seconds": float((found / "seconds").read_text()),
        **same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--file", type=Path, default=Path("results/sharded_precisions.json"))
    parser.add_argument("--precisions", help=f"{','.join(PRECISIONS)}; on a GPU fp16 too")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--together", type=int, default=3, help="how many cases at a time")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    parser.add_argument("--turned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--copy", help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given)
        return
    precisions = given.precisions or ",".join(PRECISIONS if given.device == "cpu" else (*PRECISIONS, "fp16"))
    names = [f"{p} {method}" for p in precisions.split(",") for method in given.methods.split(",")]
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        set_seed(0)
        sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
        LlamaForCausalLM(LlamaConfig(vocab_size=512, initializer_range=0.05, **sizes)).save_pretrained(work / "base")
        controls = {"turned": (1, ["--turned"]), "halves": (1, ["--parts", "2"]), "whole": (2, ["--whole"])}
        kinds: dict[str, tuple[int, list[str]]] = {"one": (1, []), **controls, "two": (2, [])}
        copied = ["copied"] if given.device == "cpu" else []
        copies = {kind: (2, ["--copy", kind]) for kind in (*copied, "changed", "refused")}

        def kinds_of(name: str) -> dict[str, tuple[int, list[str]]]:
            more = {"4bit": copies, "fp32": {"short": (1, ["--short"])}}
            return {**kinds, **more.get(name.split(" ")[0], {})}

        for start in range(0, len(names), given.together):
            started, part = [], names[start : start + given.together]
            for name in part:
                for kind, (world, more) in kinds_of(name).items():
                    (work / kind).mkdir(exist_ok=True)
                    started += launch(work / kind, given.device, name, world, more)
            for process in started:
                process.wait()
            table = {name: {kind: compared(work, name, kind) for kind in kinds_of(name)} for name in part}
            for name, row in table.items():
                print(name, json.dumps(row), flush=True)
                if "error" in row["two"]:
                    print((work / f"two {name} 0.log").read_text(errors="replace")[-3000:], flush=True)
            keep(table, given.file, given.device)


def keep(table: dict[str, Any], path: Path, device: str) -> None:
    """Write the cases into the file, beside those that it has."""
    name = device if device == "cpu" else torch.cuda.get_device_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    facts = {"device": name, "torch": torch.__version__, "steps": STEPS, "batch": BATCH, "length": LENGTH}
    path.write_text(json.dumps({**facts, "cases": {**before, **table}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
