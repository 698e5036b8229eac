"""Whose Hessian does an estimator give? Traces of every module against those of the loss's own Hessian, on real weights.

usage: python benchmarks/hessian_agreement.py MODEL TEXTS.tsv [--causal] [--json FILE] (more: --help)
       python examples/prepare_more.py downloads      (fetches models and texts)

The file has the columns `label` and `text`. With --causal the model reads the texts as a language model; without, it is a
classifier of the file's labels with a new head, drawn from the seed, which --head-steps trains alone, on other examples.

The reference is Hutchinson's estimator with many directions, twice with different ones; its own reliability is the rank
correlation of the two. Printed for each estimator: Spearman's rank correlation of its traces with the reference, and the
share of the parameters that move at r=8 from a plan by `gram` and from one by `fisher` (scores with the default weights).
Then the noise of two directions for every example, for one module at a time (as lorank does it) and for all modules at once.
"""

import argparse
import json
import random
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from calibration_sets import batches, load, read
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoTokenizer

import lorank
from lorank.scoring.batches import on_device_of

ESTIMATORS = ("gram", "fisher", "kfac")


def train_head(model: nn.Module, encoded: list[dict[str, torch.Tensor]], steps: int) -> dict[str, float]:
    """AdamW on the head alone; returns loss and accuracy of the last pass over the batches."""
    heads = [p for name, p in model.named_parameters() if name.startswith(("classifier", "score"))]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in heads:
        parameter.requires_grad_(True)
    optimizer, last = torch.optim.AdamW(heads, lr=1e-2), list[tuple[float, float]]()
    for step in range(steps):
        batch = on_device_of(model, encoded[step % len(encoded)])
        outputs = model(**batch)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        right = (outputs.logits.argmax(-1) == batch["labels"]).float().mean()
        last = [*last[1 - len(encoded) :], (float(outputs.loss.detach()), float(right))]
    return {
        "loss": round(sum(one for one, _ in last) / len(last), 4),
        "accuracy": round(sum(one for _, one in last) / len(last), 4),
    }


def hutchinson(
    model: nn.Module, encoded: list[Any], probes: int, seed: int, at_once: int | str = 1
) -> tuple[lorank.ImportanceScores, float]:
    began = time.perf_counter()
    options: Any = {"probes": probes, "modules_at_once": at_once, "seed": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lorank.LorankWarning)
        scores = lorank.score(model, encoded, preset="paper", estimator="hutchinson", **options)
    return scores, time.perf_counter() - began


def rank_correlation(one: dict[str, float], other: dict[str, float]) -> float:
    return round(float(spearmanr([one[name] for name in other], list(other.values())).statistic), 4)


def noise(traces: dict[str, dict[str, float]], reference: dict[str, float]) -> dict[str, float]:
    """How large standard errors are beside the reference trace, over the modules."""
    of_all = {name: one["standard_error"] / abs(reference[name]) for name, one in traces.items()}
    of_probes = {name: one["standard_error_of_probes"] / abs(reference[name]) for name, one in traces.items()}
    return {
        "median_error_of_probes": round(median(of_probes.values()), 4),
        "median_error": round(median(of_all.values()), 4),
        "modules_with_error_below_value": sum(one < 1 for one in of_all.values()),
        "spearman": rank_correlation({name: one["trace"] for name, one in traces.items()}, reference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--probes", type=int, default=8, help="of the reference, in each of its two halves")
    parser.add_argument("--head-steps", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = read(arguments.texts)
    names = sorted({label for label, _ in rows})
    random.Random(0).shuffle(rows)
    encoded = batches(rows[: arguments.examples], names, tokenizer, arguments.length, arguments.causal, arguments.batch)
    model = load(arguments.model, len(names), arguments.causal).to(arguments.device)
    found: dict[str, Any] = {"model": Path(arguments.model).name, "torch": torch.__version__}
    found |= {key: getattr(arguments, key) for key in ("causal", "examples", "length", "probes", "head_steps")}
    found["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    if arguments.head_steps:
        other = rows[arguments.examples : arguments.examples + 1024]
        found["head"] = train_head(
            model, batches(other, names, tokenizer, arguments.length, False), arguments.head_steps
        )
        print(f"head: {found['head']}", flush=True)

    halves = [hutchinson(model, encoded, arguments.probes, seed) for seed in (0, 1)]
    each = [scores.provenance["traces"] for scores, _ in halves]
    reference = {name: (each[0][name]["trace"] + each[1][name]["trace"]) / 2 for name in each[0]}
    errors = {name: (sum(one[name]["standard_error_of_probes"] ** 2 for one in each) ** 0.5) / 2 for name in reference}
    found["reference"] = {
        "modules": len(reference),
        "seconds": round(sum(seconds for _, seconds in halves), 1),
        "spearman_of_halves": rank_correlation(*({name: one[name]["trace"] for name in reference} for one in each)),
        "negative": sum(value < 0 for value in reference.values()),
        "median_error_of_probes": round(median(errors[name] / abs(reference[name]) for name in reference), 4),
        "error_of_probes_below_value": sum(errors[name] < abs(reference[name]) for name in reference),
    }
    print(json.dumps(found["reference"]), flush=True)

    plain = {estimator: lorank.score(model, encoded, estimator=estimator) for estimator in ESTIMATORS}
    plans = {name: lorank.allocate(scores, "r=8") for name, scores in (*plain.items(), ("hutchinson", halves[0][0]))}
    traces, estimators = dict[str, dict[str, float]](), dict[str, Any]()
    for estimator in (*ESTIMATORS, "hutchinson"):
        if estimator in plain:
            alone = lorank.score(model, encoded, estimator=estimator, topk_weight=0, effective_rank_weight=0)
            traces[estimator] = {name: float(values[0]) for name, values in alone.scores.items()}
        row: dict[str, Any] = {
            f"moved_from_{other}": round(plans[other].moved_share(plans[estimator]), 4) for other in ("gram", "fisher")
        }
        row["without_adapter"] = sum(rank == 0 for rank in plans[estimator].ranks.values())
        if estimator in traces:
            row = {"spearman_with_reference": rank_correlation(traces[estimator], reference), **row}
        estimators[estimator] = row
        print(f"{estimator:<10} {json.dumps(row)}", flush=True)
    found["estimators"] = estimators
    found["spearman_gram_fisher"] = rank_correlation(traces["gram"], traces["fisher"])

    found["two_directions"] = {}
    for how, at_once in (("one module at a time", 1), ("all modules at once", "all")):
        scores, seconds = hutchinson(model, encoded, 2, 2, at_once)
        row = {**noise(scores.provenance["traces"], reference), "seconds": round(seconds, 1)}
        found["two_directions"][how] = row
        print(f"two directions, {how}: {json.dumps(row)}", flush=True)
    found["traces"] = {
        name: [float(f"{reference[name]:.4g}"), float(f"{errors[name]:.2g}")] for name in sorted(reference)
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
