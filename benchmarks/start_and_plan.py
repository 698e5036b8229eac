"""How long a plan takes, and how long commands take to start.

usage: OMP_NUM_THREADS=1 python benchmarks/start_and_plan.py [--rounds 5] [--skip plans|commands] [--json FILE]

Plans: `lorank.allocate` from beginning to end for 1,000 and 5,000 modules of 64 units (a Llama's names and costs, budget r=8),
and for as many scores of modules, without and with resamples (two halves, 100 draws). Milliseconds, best of the rounds; beside
them, in the same run, once, the same call with the loops that specify the rules (`lorank.allocation.plain`), whose plan must be
the same, and for scale one stable argsort of all scores. Most of the time goes into the loops: minutes.

Commands: each in a process of its own, in a temporary folder with a random Llama of two small layers, a LoRA adapter for it,
scores of it, a plan, and a recipe with a typing error. Wall time, best of the rounds, beside `import torch` alone. Nothing is
downloaded.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import lorank
from lorank.allocation import budgeted
from lorank.allocation.plain import proportional_ranks_plain, top_b_ranks_plain

UNITS, BUDGET, DRAWS = 64, "r=8", 100
LAYER = {
    "self_attn.q_proj": 4096, "self_attn.k_proj": 2560, "self_attn.v_proj": 2560, "self_attn.o_proj": 4096,
    "mlp.gate_proj": 10240, "mlp.up_proj": 10240, "mlp.down_proj": 10240,
}  # fmt: skip
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def costs_of(modules: int) -> dict[str, int]:
    """Names and costs of so many modules, block by block."""
    named = ((f"model.layers.{k}.{part}", cost) for k in range(modules) for part, cost in LAYER.items())
    return dict(pair for pair, _ in zip(named, range(modules), strict=False))


def unit_scores(modules: int) -> lorank.ImportanceScores:
    source, costs = np.random.default_rng(0), costs_of(modules)
    return lorank.ImportanceScores({name: source.gamma(0.5, size=UNITS) for name in costs}, costs)


def module_scores(modules: int) -> lorank.ImportanceScores:
    source, costs = np.random.default_rng(0), costs_of(modules)
    own = {name: source.gamma(0.5, size=1) for name in costs}
    resamples = {
        kind: {name: own[name] * source.uniform(0.8, 1.2, size=count) for name in costs}
        for kind, count in (("halves", 2), ("bootstrap", DRAWS))
    }
    return lorank.ImportanceScores(own, costs, None, {}, dict.fromkeys(costs, 2048), resamples)


class PlainProportions:
    """The loop in the place of `ProportionalRule`."""

    def __init__(self, costs: Mapping[str, int], budget: int, max_ranks: Mapping[str, int], **limits: Any) -> None:
        self.names = tuple(costs)
        self.plain: Callable[[dict[str, float]], dict[str, int]] = partial(
            proportional_ranks_plain, costs=costs, budget=budget, max_ranks=max_ranks, **limits
        )

    def ranks(self, scores: np.ndarray) -> np.ndarray:
        """As `ProportionalRule.ranks`."""
        return np.array(list(self.plain(dict(zip(self.names, scores.tolist(), strict=True))).values()))


def best_of(rounds: int, call: Callable[[], object]) -> float:
    """Milliseconds, the best."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return round(min(found), 1)


def plans(rounds: int) -> dict[str, dict[str, float]]:
    """What is planned -> milliseconds by `"fast"`, `"plain"` and `"argsort"`."""
    found: dict[str, dict[str, float]] = {}
    for modules in (1000, 5000):
        units, whole = unit_scores(modules), module_scores(modules)
        cases: dict[str, tuple[lorank.ImportanceScores, dict[str, Any]]] = {
            f"{modules:,} x {UNITS} units": (units, {}),
            f"{modules:,} x {UNITS}, score-per-parameter": (units, {"rank_by": "score-per-parameter"}),
            f"{modules:,} x {UNITS}, scope layer": (units, {"scope": "layer"}),
            f"{modules:,} modules": (replace(whole, resamples=None), {}),
            f"{modules:,} modules, {2 + DRAWS} resamples": (whole, {}),
        }
        for name, (scores, limits) in cases.items():
            call = partial(lorank.allocate, scores, BUDGET, **limits)
            flat = -np.concatenate(list(scores.scores.values()))
            times = {"fast": best_of(rounds, call)}
            with (
                patch.object(budgeted, "top_b_ranks", top_b_ranks_plain),
                patch.object(budgeted, "ProportionalRule", PlainProportions),
            ):
                began = time.perf_counter()
                plain = call()
                times["plain"] = round(1000 * (time.perf_counter() - began), 1)
            times["argsort"] = best_of(rounds, partial(np.argsort, flat, kind="stable"))
            if plain != call():
                raise SystemExit(f"{name}: the two plans differ")
            found[name] = times
            print("".join([f"{name:<34}", *(f"{value:>12,.1f}" for value in times.values())]), flush=True)
    return found


def make_files(folder: Path) -> dict[str, list[str]]:
    """Write what the commands read, and give their arguments; `{round}` stands for the number of the round."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.save_pretrained(folder / "base")
    model.name_or_path = model.config._name_or_path = str(folder / "base")
    adapter = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type=TaskType.CAUSAL_LM)
    )
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapter.save_pretrained(folder / "adapter")
    scores = module_scores(168)
    scores.save(folder / "scores.safetensors")
    lorank.allocate(scores, BUDGET).save(folder / "shown.json")
    (folder / "bad.yaml").write_text("modle: base\ntask: {train: train.tsv, test: test.tsv}\n")
    return {
        "--help": ["--help"],
        "allocate": ["allocate", "scores.safetensors", "--budget", BUDGET],
        "plan show": ["plan", "show", "shown.json"],
        "run, typing error": ["run", "bad.yaml"],
        "verify": ["verify", "adapter"],
        "export": ["export", "adapter", "exported-{round}"],
    }


def commands(rounds: int) -> dict[str, float]:
    """Command -> seconds of wall time."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {"import torch": ["-c", "import torch"]}
        calls |= {f"lorank {what}": ["-m", "lorank", *rest] for what, rest in make_files(folder).items()}
        for what, rest in calls.items():
            took = [seconds_of([each.format(round=k) for each in rest], folder, what) for k in range(rounds)]
            found[what] = round(min(took), 2)
            print(f"{what:<34}{found[what]:>12.2f}", flush=True)
    return found


def seconds_of(arguments: Sequence[str], folder: Path, what: str) -> float:
    """Wall time of a Python process, which must do what it is for."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    refused = "typing error" in what
    if (done.returncode != 0) != refused or "Traceback" in done.stderr:
        raise SystemExit(f"{what} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", choices=("plans", "commands"), action="append", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    found: dict[str, Any] = {
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "cores": os.cpu_count(),
        "rounds": arguments.rounds,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    if "plans" not in arguments.skip:
        print(f"\n{'plan, ms':<34}{'fast':>12}{'plain':>12}{'argsort':>12}")
        found["plans_ms"] = plans(arguments.rounds)
    if "commands" not in arguments.skip:
        print(f"\n{'command':<34}{'s':>12}")
        found["commands_s"] = commands(arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
