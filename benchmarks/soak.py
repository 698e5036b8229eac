"""A long IGU-LoRA training with a cut every ten steps: whether memory, open files and the time of a step stay what they were.

usage: python benchmarks/soak.py [--minutes 60] [--file results/soak.json]

A BERT of 2 layers x 64 on one thread. Every 30 seconds (oftener where the run is short): resident memory, open files, the
median time of a step. Reported: memory and open files after the first tenth and at the end; the median step of the last sixth
beside that of the first; and, because other work on the machine changes that, beside that of a fresh process which runs at the
same time (unless `--alone`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
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


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--file", type=Path, default=Path("results/soak.json"))
    parser.add_argument("--alone", action="store_true")
    given = parser.parse_args()
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
    began, step, apart = time.monotonic(), 0, min(30, 5 * given.minutes)
    times, samples = list[float](), list[dict[str, Any]]()
    fresh, fresh_file = None, Path(tempfile.mkdtemp()) / "fresh.json"
    model.train()
    while (passed := time.monotonic() - began) < 60 * given.minutes:
        ids = torch.randint(1, 128, (8, 16), generator=draw)
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 2).loss.backward()
        allocation.after_backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(optimizer)
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
        step += 1
        if fresh is None and not given.alone and passed >= 50 * given.minutes:
            options = ["--alone", "--minutes", str(given.minutes / 6), "--file", str(fresh_file)]
            fresh = subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.DEVNULL)
        if passed >= apart * (len(samples) + 1):
            found = {"seconds": round(passed), "steps": step, "step_ms": round(1000 * median(times), 3)}
            samples.append({**found, "bytes": resident(), "files": len(os.listdir("/proc/self/fd"))})
            times = []
            print(samples[-1], flush=True)
    sixth, tenth = max(1, len(samples) // 6), len(samples) // 10
    first, last = (median(one["step_ms"] for one in part) for part in (samples[:sixth], samples[-sixth:]))
    result: dict[str, Any] = {
        "minutes": given.minutes,
        "steps": step,
        "bytes after a tenth": samples[tenth]["bytes"],
        "bytes at the end": samples[-1]["bytes"],
        "growth": samples[-1]["bytes"] / samples[tenth]["bytes"] - 1,
        "files": [samples[tenth]["files"], samples[-1]["files"]],
        "step_ms": [first, last],
        "torch": str(torch.__version__),
    }
    if fresh is not None:
        fresh.wait()
        beside = median(one["step_ms"] for one in json.loads(fresh_file.read_text())["samples"])
        result |= {"fresh process step_ms": beside, "last sixth over fresh process": last / beside}
    print(json.dumps(result, indent=1))
    given.file.write_text(json.dumps({**result, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
