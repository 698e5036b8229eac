"""What allocation costs while training: time of an optimizer step, peak memory and state, beside PEFT's LoRA and AdaLoRA.

usage: python benchmarks/step_overhead.py [--shape minilm|110m] [--rank 8] [--batch 32] [--length 64] [--rounds 30] [--json FILE]
       python benchmarks/step_overhead.py --training 200 [--rounds 3] [--batch 4] [--length 32] [--json FILE]

All run in this process, turn and turn about: a round is one step of each on the same batch, in an order that rotates, and
every ratio is taken within the round to PEFT's LoRA of the same rank, so that a machine that is busy for a while slows all
alike. Printed: median and quartiles of the rounds' ratios, and the ratio of all rounds' time, in which the extra pass that
IGU-LoRA makes every tenth step is counted too. The steps are Trainer's: forward, backward, clip, AdamW; with
lorank's callback hooks called as Trainer calls them, regulariser included, a score every step and no cut; with PEFT's
AdaLoRA `update_and_allocate` called as its documentation asks. `after the cut` is lorank once the ranks stand at half,
beside a PEFT LoRA that has the same ranks. Random weights: speed does not depend on them. On a GPU the model runs in bf16
autocast. Peak memory is that of one step, above what is held before it: activations, gradients and whatever scoring takes
on top (on a GPU by the allocator's own count, on a CPU by the profiler's); state is what scores keep from step to step.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification

from lorank import AllocationLoop
from lorank.adapter.convert import to_triplets
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.budget import Budget
from lorank.engine.allocator import Allocator
from lorank.engine.assembly import TrainingFacts, make_allocator, needs_passes
from lorank.engine.cut_rules import CutRules
from lorank.engine.initial_adapter import read_adapter
from lorank.engine.smoother import DeviationSmoother
from lorank.engine.training_pass import ModelPass
from lorank.methods.choose import choose_options
from lorank.targets import find_targets

SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "110m": {"hidden_size": 768, "num_hidden_layers": 20, "num_attention_heads": 12, "intermediate_size": 2048},
}
NEVER = CutSchedule(10**8, 10**9, 10**9)
Hook = Callable[[int, torch.optim.Optimizer], None]


def nothing(step: int, optimizer: torch.optim.Optimizer) -> None:
    pass


class Runner:
    """One way to train; a call is one optimizer step and gives its seconds."""

    def __init__(
        self, model: PeftModel, before: Hook = nothing, after: Hook = nothing, differentiated: Hook = nothing
    ) -> None:
        self.model, self.before, self.after, self.differentiated = model.train(), before, after, differentiated
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        self.step, self.cuda = 0, torch.cuda.is_available()

    def __call__(self, batch: dict[str, torch.Tensor]) -> float:
        """Seconds of one step."""
        self.step += 1
        synchronize()
        began = clock()
        with torch.autocast("cuda", torch.bfloat16) if self.cuda else nullcontext():
            loss = self.model(**batch).loss
        loss.backward()
        self.differentiated(self.step, self.optimizer)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.before(self.step, self.optimizer)
        self.optimizer.step()
        self.after(self.step, self.optimizer)
        self.optimizer.zero_grad()
        synchronize()
        return clock() - began

    def peak_bytes(self, batch: dict[str, torch.Tensor]) -> int:
        """What one step takes at its peak above what is held before it."""
        return peak_bytes(lambda: self(batch))


def peak_bytes(call: Callable[[], object]) -> int:
    """What a call takes at its peak above what is held before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def clock() -> float:
    """Seconds, see above."""
    alone = not torch.cuda.is_available() and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def clock_name() -> str:
    return "of this process" if abs(clock() - time.process_time()) < 1e-3 else "of the clock"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lora(base: nn.Module, targets: list[str], rank: int, device: str) -> PeftModel:
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return get_peft_model(copy.deepcopy(base), config).to(device)


def lorank(base: nn.Module, targets: list[str], rank: int, device: str, **options: Any) -> tuple[Runner, Allocator]:
    """Lorank as `RankAllocation` drives it."""
    model = lora(base, targets, rank, device)
    adapter: TripletAdapter = to_triplets(model, "default")
    preset = options.pop("preset", "recommended")
    choices = choose_options(options.pop("method", "adalora"), preset, options).choices
    layers: Any = dict(zip(adapter.names, adapter.layers, strict=True))
    initial = read_adapter(model, layers, "default", Budget.parse(f"r={rank // 2}"), choices, {})
    passed = ModelPass(model) if needs_passes(choices) else None
    facts = TrainingFacts(10_000, 1, half=torch.cuda.is_available())
    allocator = make_allocator(adapter, initial, choices, facts, passed)
    allocator.rules = CutRules(initial, choices, NEVER)
    allocator.schedule = NEVER
    allocator.begin_step(1)

    def before(step: int, optimizer: torch.optim.Optimizer) -> None:
        allocator.before_step(step)

    def after(step: int, optimizer: torch.optim.Optimizer) -> None:
        allocator.after_step(step, optimizer)
        allocator.begin_step(step + 1)

    return Runner(model, before, after), allocator


def adalora(base: nn.Module, targets: list[str], rank: int, device: str) -> Runner:
    """PEFT's AdaLoRA, before its pruning begins: scores every step, and the regulariser in the loss."""
    config = AdaLoraConfig(
        init_r=rank, target_r=rank // 2, lora_alpha=2 * rank, tinit=10**6, tfinal=10, total_step=10**7,
        orth_reg_weight=0.1, target_modules=targets,
    )  # fmt: skip
    model = get_peft_model(copy.deepcopy(base), config).to(device)

    def after(step: int, optimizer: torch.optim.Optimizer) -> None:
        model.base_model.update_and_allocate(step)

    return Runner(model, after=after)


def state_bytes(name: str, runner: Runner, allocators: dict[str, Allocator]) -> int:
    """What the scores keep from step to step."""
    if name in allocators:
        return allocators[name].smoother.state_bytes
    allocator = getattr(runner.model.base_model, "rankallocator", None)
    if allocator is None:
        return 0
    tables = (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc)
    return sum(tensor.numel() * tensor.element_size() for table in tables for tensor in table.values())


def measure(runners: dict[str, Runner], batch: dict[str, torch.Tensor], rounds: int, base: str) -> dict[str, Any]:
    """Ratios of step times to those of `base`, round by round."""
    names = list(runners)
    for _ in range(3):
        for runner in runners.values():
            runner(batch)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(runners[name](batch))
    found = {}
    for name in names:
        low, middle, high = statistics.quantiles((a / b for a, b in zip(times[name], times[base], strict=True)), n=4)
        found[name] = {
            "ratio_median": round(middle, 4),
            "ratio_quartiles": [round(low, 4), round(high, 4)],
            "ratio_of_totals": round(sum(times[name]) / sum(times[base]), 4),
            "step_ms": round(1000 * statistics.median(times[name]), 2),
            "peak_mib": round(runners[name].peak_bytes(batch) / 2**20, 1),
        }
    return found


def whole_training(
    base: nn.Module, targets: list[str], rank: int, device: str, *, batches: list[dict[str, torch.Tensor]], seed: int
) -> dict[str, Any]:
    """Ratios of a training to those of LoRA, one step for each batch, and what lorank did beside training."""
    plain = {f"r={r}": Runner(lora(base, targets, r, device)) for r in (rank, rank // 2)}
    model = lora(base, targets, rank, device)
    allocation = AllocationLoop(model, "igu-lora", f"r={rank // 2}", steps=len(batches), seed=seed)

    def differentiated(step: int, optimizer: torch.optim.Optimizer) -> None:
        allocation.after_backward()

    def before(step: int, optimizer: torch.optim.Optimizer) -> None:
        allocation.before_step()

    def after(step: int, optimizer: torch.optim.Optimizer) -> None:
        if allocation.after_step(optimizer) is not None:  # the last cut makes other tensors
            allocated.trained = [p for p in allocated.model.parameters() if p.requires_grad]

    allocated = Runner(model, before, after, differentiated)
    runners = [*plain.values(), allocated]
    times = dict.fromkeys(runners, 0.0)
    for step, batch in enumerate(batches):
        for runner in runners[step % 3 :] + runners[: step % 3]:
            times[runner] += runner(batch)
    began = clock()
    plan = allocation.finish(allocated.optimizer)
    times[allocated] += clock() - began
    return {
        "ratios": {name: times[allocated] / times[runner] for name, runner in plain.items()},
        "lora_seconds": {name: round(times[runner], 2) for name, runner in plain.items()},
        **{key: plan.provenance[key] for key in ("scoring_passes", "scoring_batches", "last_cut")},
        "check_intervals": plan.provenance["quadrature"]["intervals"],
    }


def whole_trainings(common: Any, batches: list[dict[str, torch.Tensor]], rounds: int) -> dict[str, Any]:
    """Ratios of whole trainings."""
    found = [whole_training(*common, batches=batches, seed=seed) for seed in range(rounds)]
    ratios = {name: [round(one["ratios"][name], 4) for one in found] for name in found[0]["ratios"]}
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    return {"steps": len(batches), **found[0], "ratio_medians": medians, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--training", type=int, help="whole trainings of so many steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = BertForSequenceClassification(BertConfig(**SHAPES[arguments.shape], **quiet))
    targets = [target.name for target in find_targets(base)]
    shape = (arguments.batch, arguments.length)
    batch = {
        "input_ids": torch.randint(0, 1000, shape, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.long, device=device),
        "labels": torch.arange(arguments.batch, device=device) % 2,
    }
    common = (base, targets, arguments.rank, device)
    about = {
        "shape": arguments.shape,
        "base_parameters": sum(p.numel() for p in base.parameters()),
        "modules": len(targets),
        "rank": arguments.rank,
        "batch": list(shape),
        "rounds": arguments.rounds,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "seconds": clock_name(),
        "precision": "bf16 autocast" if device == "cuda" else "fp32",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if arguments.training:
        others = [
            batch | {"input_ids": torch.randint(0, 1000, shape, device=device)} for _ in range(arguments.training)
        ]
        write(
            {"igu-lora recommended": whole_trainings(common, others, arguments.rounds)},
            about,
            arguments.json,
        )
        return

    allocators: dict[str, Allocator] = {}
    runners = {"PEFT LoRA": Runner(lora(*common))}
    runners["lorank triplet"], allocators["lorank triplet"] = lorank(*common, state="triplet")
    runners["lorank element"], allocators["lorank element"] = lorank(*common, state="element", measured="after-step")
    igu = "lorank igu-lora recommended"  # one extra pass every 10th step
    runners[igu], allocators[igu] = lorank(*common, method="igu-lora")
    runners["PEFT AdaLoRA"] = adalora(*common)
    results = measure(runners, batch, arguments.rounds, "PEFT LoRA")
    for name, runner in runners.items():
        results[name]["state_bytes"] = state_bytes(name, runner, allocators)

    # Once the ranks stand: half of the units, beside a plain LoRA with the same plan.
    allocator, cut = allocators["lorank triplet"], runners["lorank triplet"]
    assert isinstance(allocator.smoother, DeviationSmoother)
    with torch.no_grad():  # a few steps of a tiny learning rate leave λ at 0, where every score is
        allocator.smoother.mean[0].uniform_()
        allocator.smoother.deviation[0].uniform_()
    allocator.cut(cut.step, cut.optimizer, last=True)
    cut.trained = [p for p in cut.model.parameters() if p.requires_grad]
    _, plan = allocator.finish(cut.step, cut.optimizer)
    same = Runner(get_peft_model(copy.deepcopy(base), plan.lora_config()).to(device))
    later = measure(
        {"PEFT LoRA of the plan": same, "lorank after the cut": cut}, batch, arguments.rounds, "PEFT LoRA of the plan"
    )

    write({**results, **later}, about, arguments.json)


def write(results: dict[str, dict[str, Any]], about: dict[str, Any], file: Path | None) -> None:
    """Print what was found, and write it."""
    for name, result in results.items():
        print(f"{name:<28}" + "  ".join(f"{key} {value}" for key, value in result.items()))
    print(about)
    if file:
        file.write_text(json.dumps({"results": results, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
