"""Integrated gradients on a real model: how far from their integral are N intervals, and from their mean M mini-batches?

usage: python benchmarks/path_error.py MODEL TRAIN.tsv [--steps 60] [--batches 8] [--size 4] [--length 32] [--json FILE]
       python benchmarks/path_error.py downloads/minilm downloads/reuters-r8/train.tsv --json results/path_error_minilm.json

The file has the columns `label` and `text`. Triplets train for some steps on 16 texts each; then mini-batches of `--size` texts
are passed at 33 path points each, λ moving alone (IGU-LoRA, eq. 4 and 5). Printed, all relative to the units' integrals,
`Σ_i |error_i| / Σ_i |integral_i|`:

- N: error of the trapezoid with N intervals (truth: N = 32), mean over mini-batches; and for the first mini-batch the two
  estimates of `check_quadrature`, Richardson's and that of the bound;
- M: standard error of the mean over M mini-batches, for the whole integral of each, and for one drawn α of each
  (`estimator: single-pass`).
"""

import argparse
import csv
import json
import platform
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from lorank.adapter.convert import to_triplets
from lorank.adapter.triplet import TripletAdapter
from lorank.engine.estimators import check_quadrature
from lorank.engine.path import path_integral
from lorank.engine.quadrature import path_nodes

TRUTH = 32


def trained(model_name: str, labels: int, made: list[dict[str, torch.Tensor]]) -> tuple[Any, TripletAdapter]:
    """A classifier and its triplets of rank 8, one step of AdamW for each batch."""
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=labels, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(base, config)
    adapter = to_triplets(model, "default", initial_lambda=0.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    model.train()
    for step, batch in enumerate(made):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    return model.eval(), adapter


def along_the_path(model: Any, adapter: TripletAdapter, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`λ ∂L/∂λ` of every unit at α = 0, 1/32, ..., 1: `(33, units)`, float64."""
    values = torch.cat([v.detach() for v in adapter.lambdas]).double()
    rows = []
    for k in range(TRUTH + 1):
        gradients, _ = path_integral(model, adapter, batch, [(k / TRUTH, 1.0)], adapter.lambdas)
        rows.append(values * torch.cat(gradients).double())
    return torch.stack(rows)


def trapezoid(path: torch.Tensor, intervals: int) -> torch.Tensor:
    """Of values at 33 points, with N intervals."""
    weights = torch.tensor(path_nodes("trapezoid", intervals).weights, dtype=torch.float64)
    return weights @ path[:: TRUTH // intervals]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    with asked.train.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = sorted({row["label"] for row in rows})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)

    def batch_of(numbers: list[int]) -> dict[str, torch.Tensor]:
        texts, labels = [rows[k]["text"] for k in numbers], [names.index(rows[k]["label"]) for k in numbers]
        read = tokenizer(texts, padding=True, truncation=True, max_length=asked.length, return_tensors="pt")
        return {**read, "labels": torch.tensor(labels)}

    model, adapter = trained(
        asked.model, len(names), [batch_of(order[16 * k : 16 * (k + 1)]) for k in range(asked.steps)]
    )
    rest, size = order[16 * asked.steps :], asked.size
    scored = [batch_of(rest[size * k : size * (k + 1)]) for k in range(asked.batches)]
    paths = []
    for number, batch in enumerate(scored):
        paths.append(along_the_path(model, adapter, batch))
        print(f"mini-batch {number + 1} of {len(scored)}", flush=True)

    truths = torch.stack([trapezoid(path, TRUTH) for path in paths])
    found: dict[str, Any] = {"intervals": {}, "mini-batches": {}}
    for n in (2, 4, 8, 16):
        errors = [float((trapezoid(p, n) - t).abs().sum() / t.abs().sum()) for p, t in zip(paths, truths, strict=True)]
        check = check_quadrature(model, adapter, scored[0], n)
        numbers = errors[0], check.richardson_estimate, check.bound_estimate or 0.0
        found["intervals"][n] = {
            "error": sum(errors) / len(errors),
            **dict(zip(("first_error", "first_richardson", "first_bound_estimate"), numbers, strict=True)),
        }
        print(f"N = {n:>2}: error {sum(errors) / len(errors):.2e}; first mini-batch: error {numbers[0]:.2e}, Richardson "
              f"{numbers[1]:.2e}, bound estimated {numbers[2]:.2e}")  # fmt: skip
    integrals = truths.mean(0).abs().sum()
    whole = truths.std(0)
    # One uniform α of a random mini-batch: spread over both.
    draws = torch.stack(paths)[:, 1:]
    single = draws.flatten(0, 1).std(0)
    for m in (1, 10, 100, 1000):
        spread = {
            name: float(sd.sum() / integrals) / m**0.5 for name, sd in (("integral", whole), ("single-pass", single))
        }
        found["mini-batches"][m] = spread
        print(
            f"M = {m:>4}: standard error {spread['integral']:.2e} of whole integrals, {spread['single-pass']:.2e} of one α"
        )
    if asked.json:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        settings = {"model": Path(asked.model).name, "texts": asked.train.parent.name}
        settings |= {key: value for key, value in vars(asked).items() if isinstance(value, int)}
        text = json.dumps({"settings": settings, "versions": versions, **found}, indent=1)
        asked.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
