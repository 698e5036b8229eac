"""How much faster several processes score than one: `lorank.score` whole in the first process, then split over all.

usage: OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/split_scoring.py [--estimator fisher] [--examples 64]
       [--batch 4] [--length 64] [--layers 15] [--rounds 5] [--json FILE]

First the first process scores alone, as many times as there are rounds, while the others wait without computing; then all score
together. Printed are medians: the time by the clock (of the slowest process), and the processor time of each process, which other
work on the machine disturbs less. The ratio of processor times is what the clock would show with an idle core for each
process, but for the time that they wait for each other. A Llama of SmolLM2's width with random weights (62M parameters with
15 layers): speed does not depend on them.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from scoring_cost import LLAMA
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

import lorank
from lorank.scoring.split.collectives import gathered, process_count, process_index


def timed(score: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds by the clock and of processor time of each round, after one that does not count."""
    score()
    clock, processor = [], []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        score()
        clock.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return clock, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", default="fisher", choices=["gram", "fisher", "kfac", "hutchinson"])
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=LLAMA["num_hidden_layers"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="writes what was measured")
    chosen = parser.parse_args()
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, "num_hidden_layers": chosen.layers}))
    ids = torch.randint(0, LLAMA["vocab_size"], (chosen.examples, chosen.length))
    batches = [{"input_ids": part, "labels": part} for part in ids.split(chosen.batch)]

    def score() -> object:
        return lorank.score(model, batches, estimator=chosen.estimator)

    first = os.environ["RANK"] == "0"
    alone = timed(score, chosen.rounds) if first else ([], [])
    distributed.init_process_group("gloo", timeout=timedelta(hours=1))
    distributed.barrier()
    together = gathered(timed(score, chosen.rounds))
    if process_index() == 0:
        one = [statistics.median(each) for each in alone]
        wall = statistics.median(map(max, zip(*(clock for clock, _ in together), strict=True)))
        each = [statistics.median(processor) for _, processor in together]
        found = {
            **{key: str(value) if isinstance(value, Path) else value for key, value in vars(chosen).items()},
            "processes": process_count(),
            "one": {"clock": one[0], "processor": one[1]},
            "together": {"clock": wall, "processor": each},
            "faster": {"clock": one[0] / wall, "processor": one[1] / max(each)},
        }
        print(f"one process      {one[0]:.2f} s by the clock, {one[1]:.2f} s of processor time")
        shown = ", ".join(f"{seconds:.2f}" for seconds in each)
        print(f"{process_count()} processes      {wall:.2f} s by the clock, {shown} s of processor time")
        print(f"faster           {one[0] / wall:.2f} x by the clock, {one[1] / max(each):.2f} x by processor time")
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
