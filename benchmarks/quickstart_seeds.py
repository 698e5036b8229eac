"""The quickstart's recipe over several seeds and methods: is one run's difference noise?

usage: python benchmarks/quickstart_seeds.py [--methods i-lora | in-training | before-training] [--seeds 0 1 2] [--json FILE]

`i-lora`: both presets of I-LoRA, and uniform LoRA. `in-training`: examples/igu-lora.yaml with IGU-LoRA's and AdaLoRA's
presets. `before-training`: examples/sensitivity-lora.yaml with its estimators and the other one-shot scorers. Needs what
`python examples/prepare_quickstart.py downloads` fetches. A run that was stopped is continued. Equal budget in parameters,
scale, data order and steps of the adapter's training within a seed; what scoring costs on top is shown.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console

from lorank.recipe.files import load_recipe
from lorank.runs.run import run

Runs = dict[str, tuple[str, list[str]]]
# The baseline need not run twice.
I_LORA: Runs = {
    "i-lora, loss-per-parameter": ("examples/quickstart.yaml", ["preset=loss-per-parameter", "baselines=[lora]"]),
    "i-lora, paper": ("examples/quickstart.yaml", ["preset=paper", "baselines=[]"]),
}
# `paper` averages over an epoch, and 150 steps are less than one; the official code prunes a longer run, and trains again.
IN_TRAINING: Runs = {
    "igu-lora, recommended": ("examples/igu-lora.yaml", []),
    # The control: the same training and the same cuts inside of each module, but every module ends with rank 2.
    "igu-lora, recommended, uniform ranks": (
        "examples/igu-lora.yaml",
        ["allocation.min_rank=2", "allocation.max_rank=2"],
    ),
    "igu-lora, paper": ("examples/igu-lora.yaml", ["preset=paper", "pruning.window=10"]),
    "igu-lora, official": ("examples/igu-lora.yaml", ["preset=official"]),
    "adalora, paper": ("examples/igu-lora.yaml", ["method=adalora", "preset=paper"]),
    "adalora, recommended": ("examples/igu-lora.yaml", ["method=adalora", "preset=recommended"]),
}
BEFORE: Runs = {
    "sensitivity-lora, gram": ("examples/sensitivity-lora.yaml", []),
    "sensitivity-lora, fisher": ("examples/sensitivity-lora.yaml", ["calibration.estimator=fisher", "baselines=[]"]),
    "sensitivity-lora, kfac": ("examples/sensitivity-lora.yaml", ["calibration.estimator=kfac", "baselines=[]"]),
    "gradient": ("examples/sensitivity-lora.yaml", ["method=gradient", "baselines=[]"]),
    "magnitude": ("examples/sensitivity-lora.yaml", ["method=magnitude", "baselines=[]"]),
}
CHOICES = {"i-lora": I_LORA, "in-training": IN_TRAINING, "before-training": BEFORE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", choices=CHOICES, default="i-lora")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    by_method: dict[str, list[dict[str, object]]] = {}
    for seed in arguments.seeds:
        for key, (recipe, overrides) in CHOICES[arguments.methods].items():
            chosen = load_recipe(recipe, [f"seed={seed}", *overrides])
            result = run(chosen, f"runs/seeds/{key.replace(', ', '-').replace(' ranks', '')}-{seed}", Console())
            for method, measured in result.results.items():
                name = method if method in chosen.baselines else key
                by_method.setdefault(name, []).append({"seed": seed, **measured})
    for name, runs in by_method.items():
        for metric in ("accuracy", "f1"):
            values = [float(measured["metrics"][metric]) for measured in runs]  # type: ignore[index]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{name:<38}{metric:<10}{statistics.mean(values):.4f} ± {spread:.4f}   {each}")
    if arguments.json:
        arguments.json.write_text(json.dumps(by_method, indent=1) + "\n")


if __name__ == "__main__":
    main()
