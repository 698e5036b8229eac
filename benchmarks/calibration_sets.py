"""Do scores depend on the calibration set? Two sets of different texts on one real model, and two samples of the same set.

usage: python benchmarks/calibration_sets.py MODEL A.tsv B.tsv [--causal] [--json FILE] (more: --help)
       python examples/prepare_more.py downloads      (fetches models and texts)

The files have the columns `label` and `text`. With --causal the model reads the texts as a language model and labels are not
looked at; without, it is a classifier of the file's labels with a new head, drawn from the seed. Printed for each estimator:
Spearman's rank correlation of the modules' scores, and of their traces alone, between A and B, and as a measure of what
chance does between two samples of A; and the share of the parameters that move between the plans at r=8.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)

import lorank


def read(path: Path) -> list[tuple[str, str]]:
    """Label and text of every row."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["label"], row["text"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def batches(
    rows: list[tuple[str, str]],
    names: list[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    causal: bool,
    size: int = 16,
) -> list[dict[str, torch.Tensor]]:
    """Padded batches."""
    made = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = dict(
            tokenizer([text for _, text in part], padding=True, truncation=True, max_length=length, return_tensors="pt")
        )
        if causal:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        else:
            batch["labels"] = torch.tensor([names.index(label) for label, _ in part])
        made.append(batch)
    return made


def load(model: str, labels: int, causal: bool) -> nn.Module:
    set_seed(0)
    if causal:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return AutoModelForSequenceClassification.from_pretrained(model, num_labels=labels, dtype=torch.float32).eval()


def compared(one: lorank.ImportanceScores, other: lorank.ImportanceScores) -> dict[str, float]:
    pairs = [(one.scores[name][0], other.scores[name][0]) for name in one.scores]
    plans = [lorank.allocate(scores, "r=8") for scores in (one, other)]
    return {
        "spearman": round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4),
        "moved_share": round(plans[0].moved_share(plans[1]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--estimators", nargs="+", default=["gram", "fisher", "kfac"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    sets: dict[str, tuple[nn.Module, list[dict[str, torch.Tensor]]]] = {}
    for name, path, sample in (("A", arguments.a, 0), ("A, other examples", arguments.a, 1), ("B", arguments.b, 0)):
        rows = read(path)
        names = sorted({label for label, _ in rows})
        random.Random(0).shuffle(rows)
        part = rows[sample * arguments.examples : (sample + 1) * arguments.examples]
        encoded = batches(part, names, tokenizer, arguments.length, arguments.causal)
        sets[name] = (load(arguments.model, len(names), arguments.causal), encoded)
    found: dict[str, Any] = {}
    for estimator in arguments.estimators:
        for kind, weight in (("score", 0.5), ("trace", 0.0)):
            options = {"estimator": estimator, "topk_weight": weight, "effective_rank_weight": weight}
            scored = {n: lorank.score(*pair, **options) for n, pair in sets.items()}
            for other in ("B", "A, other examples"):
                row = compared(scored["A"], scored[other])
                found[f"{estimator}, {kind}, A to {other}"] = row
                moved = f"{100 * row['moved_share']:.1f} % of the parameters move at r=8"
                print(f"{estimator:<7} {kind:<6} A to {other:<18} Spearman {row['spearman']:.3f}, {moved}", flush=True)
    if arguments.json is not None:
        settings = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
            if key != "json"
        }
        arguments.json.write_text(json.dumps({"settings": settings, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
