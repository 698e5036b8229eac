"""The quickstart's recipe over several seeds, both presets of I-LoRA and uniform LoRA: is one run's difference noise?

usage: python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--json results/quickstart_seeds.json]

Needs what `python examples/prepare_quickstart.py downloads` fetches. A run that was stopped is continued. Equal budget,
scale, data order and stage-2 steps within a seed; I-LoRA's stage 1 comes on top and is shown.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console

from lorank.training.recipe import load_recipe
from lorank.training.run import run

PRESETS = {"loss-per-parameter": "[lora]", "paper": "[]"}  # the baseline need not run twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    for seed in arguments.seeds:
        for preset, baselines in PRESETS.items():
            overrides = [f"seed={seed}", f"preset={preset}", f"baselines={baselines}"]
            result = run(load_recipe("examples/quickstart.yaml", overrides), f"runs/seeds/{preset}-{seed}", Console())
            for method, measured in result.results.items():
                name = method if method == "lora" else f"{method}, {preset}"
                found.setdefault(name, []).append({"seed": seed, **measured})
    for name, runs in found.items():
        for metric in ("accuracy", "f1"):
            values = [float(measured["metrics"][metric]) for measured in runs]  # type: ignore[index]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{name:<28}{metric:<10}{statistics.mean(values):.4f} ± {spread:.4f}   {each}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
