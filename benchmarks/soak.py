"""A long IGU-LoRA training with a cut every ten steps: whether memory, open files and the time of a step stay what they were.

usage: python benchmarks/soak.py [--minutes 60] [--file results/soak.json]

A BERT of 2 layers x 64 on one thread. Every 30 seconds (oftener where the run is short): resident memory, open files, the
median time of a step. Reported: memory and open files after the first tenth and at the end; the median step of the first sixth
and of the last; and, because other work on the machine changes that, the last sixth beside a fresh process: the two take turns
of 100 steps, one waits while the other trains, and the ratio is the median over pairs of turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

from lorank import AllocationLoop

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STEPS = 10_000_000  # never reached: the budget falls slowly, and a cut goes over all units each time
TURN = 100  # steps


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def training() -> Callable[[], float]:
    """A training at its start: each call is one step, and gives its milliseconds."""
    torch.set_num_threads(1)
    set_seed(0)
    base = BertForSequenceClassification(BertConfig(**SIZES, num_labels=2))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(base, lora)
    allocation = AllocationLoop(
        model, "igu-lora", "r=2", steps=STEPS, every=1, begin=1e-6, end=0.9, interval=10, estimator="one-sample"
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    draw = torch.Generator().manual_seed(0)
    model.train()

    def step() -> float:
        ids = torch.randint(1, 128, (8, 16), generator=draw)
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 2).loss.backward()
        allocation.after_backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(optimizer)
        optimizer.zero_grad()
        return 1000 * (time.perf_counter() - start)

    return step


def take_turns() -> None:
    """Train one turn for each line that comes in, and say the median time of its steps."""
    step = training()
    for _ in range(TURN):
        step()
    for _ in sys.stdin:
        print(median(step() for _ in range(TURN)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--file", type=Path, default=Path("results/soak.json"))
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turns:
        return take_turns()
    step = training()
    began, apart = time.monotonic(), min(30, 5 * given.minutes)
    steps, times, samples, ratios = 0, list[float](), list[dict[str, Any]](), list[float]()
    fresh: subprocess.Popen[str] | None = None
    while (passed := time.monotonic() - began) < 60 * given.minutes:
        turn = [step() for _ in range(TURN)]
        steps, times = steps + TURN, times + turn
        if passed >= 50 * given.minutes:
            if fresh is None:
                fresh = subprocess.Popen(
                    [sys.executable, __file__, "--turns"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            assert fresh.stdin is not None
            assert fresh.stdout is not None
            print(file=fresh.stdin, flush=True)
            ratios.append(median(turn) / float(fresh.stdout.readline()))
        if passed >= apart * (len(samples) + 1):
            found = {"seconds": round(passed), "steps": steps, "step_ms": round(median(times), 3)}
            files = len(os.listdir("/proc/self/fd")) - 2 * (fresh is not None)  # its pipes
            samples.append({**found, "bytes": resident(), "files": files})
            times = []
            print(samples[-1], flush=True)
    if fresh is not None:
        fresh.communicate()
    sixth, tenth = max(1, len(samples) // 6), len(samples) // 10
    first, last = (median(one["step_ms"] for one in part) for part in (samples[:sixth], samples[-sixth:]))
    result = {
        "minutes": given.minutes,
        "steps": steps,
        "bytes after a tenth": samples[tenth]["bytes"],
        "bytes at the end": samples[-1]["bytes"],
        "growth": samples[-1]["bytes"] / samples[tenth]["bytes"] - 1,
        "files": [samples[tenth]["files"], samples[-1]["files"]],
        "step_ms": [first, last],
        "turns": len(ratios),
        "last sixth over fresh process": median(ratios),
        "quartiles of it": [quantiles(ratios)[0], quantiles(ratios)[-1]],
        "torch": str(torch.__version__),
    }
    print(json.dumps(result, indent=1))
    given.file.write_text(json.dumps({**result, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
